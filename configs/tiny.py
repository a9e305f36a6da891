"""A run for tests and first tries: every feature once, in half a minute.

60 steps with a checkpoint every 5, a ladder of three rates (0.5, 0.25, 0) and
one growth from 2 to 4 layers after 30 steps.

    satjax train --config=configs/tiny.py --workdir=runs/tiny
"""

from configs import base


def get_config():
  config = base.get_config()

  config.model.num_layers = 2
  config.model.embed_dim = 64
  config.model.num_heads = 4
  config.model.num_kv_heads = 4
  config.model.head_dim = 16
  config.model.mlp_dim = 128

  config.data.train = ('stdlib:code',)
  config.data.eval = ('stdlib:code',)
  config.data.seq_len = 64

  config.train.num_steps = 60
  config.train.batch_size = 4
  config.train.log_every = 1
  config.train.eval_every = 30
  config.train.eval_batches = 4
  config.train.checkpoint_every = 5

  config.optimizer.warmup_steps = 1 / 6

  config.sparsity.head_rate = 0.5
  config.sparsity.channel_rate = 0.5
  config.sparsity.split = 0.5
  config.sparsity.rungs = 2
  config.sparsity.refresh_every = 4
  config.sparsity.channel_multiple = 16

  # 30 steps of 4 rows of 64 tokens.
  config.growth.hops = ((30 * 4 * 64, 'stack', 2),)
  return config
