"""Pre-training of the quickstart: a small byte-level Llama reads documentation.

4.4M parameters; 200 steps of 8 rows of 256 bytes, about 90 seconds on two
cores. `experiments/quickstart.py` continues it on code, dense and sparse.

    satjax train --config=configs/quickstart.py --workdir=runs/pretrain
"""

from configs import base


def get_config():
  config = base.get_config()

  config.model.num_layers = 4
  config.model.mlp_dim = 1024
  config.model.scan = False

  config.data.train = ('stdlib:docs',)
  config.data.eval = ('stdlib:docs', 'stdlib:code')

  config.train.num_steps = 200
  config.train.log_every = 5
  config.train.eval_every = 0
  config.train.checkpoint_every = 100

  config.optimizer.peak_lr = 2e-3
  config.optimizer.end_lr = 2e-4
  config.optimizer.warmup_steps = 30
  return config
