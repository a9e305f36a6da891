"""Pre-training of the quickstart: a small byte-level Llama reads documentation.

1.1M parameters; 500 steps of 8 rows of 128 bytes, under a minute on two cores.
`experiments/quickstart.py` sets growth beside it, and goes on with code.

    satjax train --config=configs/quickstart.py --workdir=runs/pretrain
"""

from configs import base


def get_config():
  config = base.get_config()

  config.model.num_layers = 4
  config.model.embed_dim = 128
  config.model.head_dim = 16
  config.model.mlp_dim = 512
  config.model.scan = False

  config.data.train = ('stdlib:docs',)
  config.data.eval = ('stdlib:docs', 'stdlib:code')
  config.data.seq_len = 128

  config.train.num_steps = 500
  config.train.log_every = 5
  config.train.eval_every = 0
  config.train.eval_batches = 32
  config.train.checkpoint_every = 0.5

  config.optimizer.peak_lr = 4e-3
  config.optimizer.end_lr = 4e-4
  config.optimizer.warmup_steps = 0.05
  return config
