"""Supervised fine-tuning of TinyLlama-1.1B (Zhang et al., 2024), dense.

Shape and caveats as in `configs/tinyllama_1b_cpt.py`. The pairs are signatures
of the Python standard library, answered by their docstrings; for your own,
`config.data.train=('jsonl:GLOB',)`.

    satjax train --config=configs/tinyllama_1b_sft.py --workdir=runs/tinyllama \
      --config.model.init_from=MODEL_DIR

The paper's SAT: `--config.sparsity.head_rate=0.5
--config.sparsity.channel_rate=0.5`.
"""

from configs import tinyllama_1b_cpt


def get_config():
  config = tinyllama_1b_cpt.get_config()

  config.data.train = ('stdlib:docstrings',)
  config.data.eval = ('stdlib:docstrings',)

  # 131072 tokens a step: three epochs of 2.2M bytes.
  config.train.batch_size = 64
  config.train.num_steps = 50
  config.train.eval_every = 0.5
  config.train.checkpoint_every = 0.5

  config.optimizer.peak_lr = 2e-5
  config.optimizer.warmup_steps = 0.1

  config.sparsity.head_rate = 0.0
  config.sparsity.channel_rate = 0.0
  return config
