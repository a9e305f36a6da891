"""Continual pre-training of SmolLM2-135M-Instruct, or of another model.

The text is the source code of Python's library, or a source that you name; its
documentation shows what is forgotten. A few minutes on two cores:

    make real-model
    satjax train --config=configs/smollm2_cpt.py --workdir=runs/code
    satjax train --config=configs/smollm2_cpt.py:'text:books/*.txt' \
      --workdir=runs/books

`--config.model.init_from=MODEL`, a Hugging Face directory or an id of its hub,
takes another model with its tokenizer. Tried, with 20 steps of 512 tokens
(held-out loss before the run and after it):

    peak_lr          stdlib:code       stdlib:docs
    8e-5, 'auto'     2.610 -> 2.335    3.270 -> 3.109
    2e-5             2.610 -> 2.462    3.270 -> 3.175

Twenty steps show that it works; the same command with more of them,
`--config.train.num_steps=1000`, goes on with the run. SAT is two keys,
`--config.sparsity.head_rate=0.5 --config.sparsity.channel_rate=0.5`; what wins
on this model, and at which learning rates, is in docs/methods.md.
"""

from configs import base


def get_config(source='stdlib:code'):
  config = base.get_config()

  config.model.init_from = 'models/smollm2'

  config.data.train = (source,)
  config.data.eval = (source, 'stdlib:docs')
  config.data.seq_len = 128

  # 4 rows of 128 tokens: 512 tokens a step.
  config.train.num_steps = 20
  config.train.batch_size = 4
  config.train.log_every = 5
  config.train.eval_every = 20  # and before the first step
  config.train.eval_batches = 4
  config.train.checkpoint_every = 0
  return config
