"""Supervised fine-tuning: signatures answered by their docstrings.

The pairs come from the Python standard library on your disk; the loss counts
the answers alone. Start from random weights, or from a model that has read
something before, such as that of `configs/cpt.py`. Some minutes on two cores:

    satjax export --workdir=runs/cpt --out=models/cpt
    satjax train --config=configs/sft.py --workdir=runs/sft \
      --config.model.init_from=models/cpt --config.optimizer.peak_lr=1e-3

One of a million parameters did best at 5e-4; the default is 8e-5, for those
that know more.
`satjax preview --config=configs/sft.py` shows what is learned. Pairs and chats
of your own: `configs/sft_jsonl.py`; a real model: `configs/smollm2_sft.py`.

SAT makes steps faster, and pays for it in loss (docs/methods.md):

    --config.sparsity.head_rate=0.5 --config.sparsity.channel_rate=0.5
"""

from configs import cpt


def get_config():
  config = cpt.get_config()

  config.data.train = ('stdlib:docstrings',)
  config.data.eval = ('stdlib:docstrings',)
  # Half of the pairs are longer than 180 bytes, 3 % than 2048.
  config.data.seq_len = 1024
  config.data.packing = 'best_fit'

  # 2 rows of 1024 bytes a step: 410k tokens, a fifth of the pairs.
  config.train.batch_size = 2

  config.sparsity.head_rate = 0.0
  config.sparsity.channel_rate = 0.0
  return config
