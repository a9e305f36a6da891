"""Supervised fine-tuning with LoRA, the baseline that SAT has to beat.

The pairs of `configs/sft.py`, every neuron in its place, and adapters of rank
16 beside all matrices of the blocks. The step saves the gradients of the
matrices and their moments; the paper's SAT saves forward and backward passes.
Start from a model that has read something before, such as that of
`configs/cpt.py`:

    satjax export --workdir=runs/cpt --out=models/cpt
    satjax train --config=configs/lora.py --workdir=runs/lora \
      --config.model.init_from=models/cpt --config.optimizer.peak_lr=3e-3

So small a model takes this rate; the default of adapters is 1.28e-3. Both at
once, adapters over a model that neurons are left out of, forward too:

    --config.sparsity.head_rate=0.5 --config.sparsity.channel_rate=0.5
"""

from configs import sft


def get_config():
  config = sft.get_config()

  config.lora.rank = 16
  config.lora.alpha = 32.0
  config.lora.targets = (
    'query',
    'key',
    'value',
    'output',
    'gate',
    'up',
    'down',
  )
  return config
