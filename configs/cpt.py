"""Continual pre-training with SAT: from documentation to source code.

A model that has read the documentation of the Python standard library goes on
with its source code, half of its heads and channels left out of the backward
pass. Evaluation of both sources shows what is learned and what is forgotten.
First the model, then the run, some minutes on two cores:

    satjax train --config=configs/quickstart.py --workdir=runs/docs
    satjax export --workdir=runs/docs --out=models/docs
    satjax train --config=configs/cpt.py --workdir=runs/cpt \
      --config.model.init_from=models/docs --config.optimizer.peak_lr=1e-3

One of a million parameters did best at 2e-3; one that knows more is continued
at 8e-5 or less, the default. Without `init_from` the same shape starts from
random weights. Dense: `--config.sparsity.head_rate=0
--config.sparsity.channel_rate=0`, and so is `configs/smollm2_cpt.py`, which
continues a real model.
"""

from configs import base


def get_config():
  config = base.get_config()

  # Without `init_from`: 4.4M parameters.
  config.model.num_layers = 4
  config.model.mlp_dim = 1024
  config.model.scan = False

  config.data.train = ('stdlib:code',)
  config.data.eval = ('stdlib:docs', 'stdlib:code')

  # 8 rows of 256 bytes a step: 410k tokens, 3% of the source.
  config.train.num_steps = 200
  config.train.eval_every = 0.5
  config.train.checkpoint_every = 0.5

  config.optimizer.warmup_steps = 0.05

  config.sparsity.head_rate = 0.5
  config.sparsity.channel_rate = 0.5
  return config
