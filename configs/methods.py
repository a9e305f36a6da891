"""Published ways to train a given model for less, and SAT: a name for each.

Each is one point in a space: which units are left out, what they do meanwhile,
how they are chosen, and when (docs/methods.md). A name sets `sparsity` and
`lora` of any configuration, that of `configs/cpt.py` unless another is named:

    satjax plan --config=configs/methods.py:lisa
    satjax train --config=configs/methods.py:lisa --workdir=runs/lisa \
      --config.model.init_from=MODEL --config.data.train="('text:books/*.txt',)"
    satjax train --config=configs/methods.py:lisa:configs/smollm2_cpt.py \
      --workdir=runs/lisa

What the configuration says of the machine stays, and so do its growth, its
optimizer and its learning rate: every method wants one of its own.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from configs import base
from satjax import errors
from satjax.config import file

# Settings of `sparsity` that are no part of a method.
_OF_MACHINE = ('execution', 'channel_multiple', 'shards', 'rest')
_CONSTANT = {'split': 1.0}  # one rate to the last step
_NEVER = 10**9  # steps until the next refresh: later than any run ends


@dataclasses.dataclass(frozen=True)
class Method:
  """A point in the space of methods.

  Attributes:
    source: whose it is.
    saves: what of a step an omitted unit saves.
    claim: what its authors say of it; '': nothing, or it is ours.
    sparsity: what it sets.
    lora: the same.
  """

  source: str
  saves: str
  claim: str = ''
  sparsity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  lora: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_HALF = {'head_rate': 0.5, 'channel_rate': 0.5}
_SKIP = {'omitted_forward': 'skip'}
# A metric of the paper, whose rates and ladder are not public: these are ours.
_SAT = {**_HALF, **_SKIP, 'importance': 'maxip'}
_DROPBP = {
  **_CONSTANT,
  'layer_rate': 0.5,
  'omitted_forward': 'exact',
  'importance': 'sensitivity',
}
_ADAPTERS = {
  'rank': 16,
  'alpha': 32.0,
  'targets': ('query', 'key', 'value', 'output', 'gate', 'up', 'down'),
}
_ALL = 'forward, dX, dW, moments'
_BACKWARD = 'dX, dW, moments'
_OWN = 'dW, moments'

METHODS = {
  'dense': Method('full training', 'nothing'),
  'sat': Method(
    'SAT, arXiv 2406.01392',
    _ALL,
    'continual pre-training at 45 % more throughput, fine-tuning in 38 % less'
    ' time, of comparable quality',
    sparsity=_SAT,
  ),
  'sat_channels': Method(
    'ours: SAT on channels alone',
    _ALL,
    sparsity={**_SKIP, 'channel_rate': 0.5, 'importance': 'maxip'},
  ),
  'sat_exact': Method(
    'ours: SAT with a dense forward pass',
    _BACKWARD,
    sparsity={**_SAT, 'omitted_forward': 'exact'},
  ),
  'half': Method(
    'HFT, arXiv 2404.18466',
    _OWN,
    'about 30 % less time than full fine-tuning, and less is forgotten',
    sparsity={
      **_HALF,
      **_CONSTANT,
      'omitted_forward': 'through',
      'importance': 'uniform',
      'refresh_every': _NEVER,
    },
  ),
  'layerdrop': Method(
    'LayerDrop, arXiv 1909.11556',
    _ALL,
    'regularises, and shallower models may be cut out afterwards',
    sparsity={
      **_CONSTANT,
      **_SKIP,
      'layer_rate': 0.2,
      'importance': 'uniform',
    },
  ),
  'progressive': Method(
    'progressive layer dropping, arXiv 2010.13369',
    _ALL,
    'BERT: 24 % less time a sample, 2.5 times as fast to similar accuracy',
    # Dense first, then up, and more of the upper layers.
    sparsity={
      **_SKIP,
      'layer_rate': 0.5,
      'layer_scale': {'layers': 'depth'},
      'importance': 'uniform',
      'shape': 'reversed',
      'split': 0.9,
    },
  ),
  'lors_layers': Method(
    "ours: SAT's ladder on layers",
    _ALL,
    sparsity={
      **_SKIP,
      'layer_rate': 0.25,
      'dense_layers': (1, 1),
      'importance': 'influence',
    },
  ),
  'dropbp': Method(
    'DropBP, arXiv 2402.17812',
    _BACKWARD,
    '44 % less time at comparable accuracy, 1.5 times as fast to the same'
    ' perplexity',
    sparsity=_DROPBP,
  ),
  'lisa': Method(
    'LISA, arXiv 2403.17919',
    _OWN,
    'the memory of LoRA, better than LoRA and often than full training',
    sparsity={
      **_CONSTANT,
      'layer_rate': 0.85,
      'omitted_forward': 'through',
      'importance': 'uniform',
    },
  ),
  'badam': Method(
    'BAdam, arXiv 2404.02827',
    f'{_OWN}; below the lowest layer that trains dX',
    'little memory, about half of the time of the backward pass',
    sparsity={
      **_CONSTANT,
      'layer_rate': 0.85,
      'omitted_forward': 'through',
      'embed': 'rest',
      'importance': 'cyclic',
      'refresh_every': 50,
    },
  ),
  'static': Method(
    'pruning, once and for all',
    _ALL,
    sparsity={
      **_HALF,
      **_CONSTANT,
      **_SKIP,
      'selection': 'top_k',
      'refresh_every': _NEVER,
    },
  ),
  'lora': Method(
    'LoRA, arXiv 2106.09685',
    'dW and moments of every matrix',
    'GPT-3: a third of the memory, as good as full fine-tuning or better',
    lora=_ADAPTERS,
  ),
  'lora_dropbp': Method(
    'DropBP of adapters, arXiv 2402.17812',
    f'{_BACKWARD}; dW and moments of every matrix',
    sparsity=_DROPBP,
    lora=_ADAPTERS,
  ),
  'lora_sat': Method(
    'ours: adapters of what SAT keeps',
    f'{_ALL}; dW and moments of every matrix',
    sparsity=_SAT,
    lora=_ADAPTERS,
  ),
}


def get_config(argument='sat'):
  """`NAME`, or `NAME:FILE` with what `--config` takes."""
  name, _, path = argument.partition(':')
  if name not in METHODS:
    raise errors.ConfigError(
      f'configs/methods.py:{argument}: {name!r} is no method; use one of'
      f' {", ".join(METHODS)}, such as configs/methods.py:sat, or with another'
      ' configuration configs/methods.py:sat:configs/smollm2_cpt.py'
    )
  config, defaults = file.read(path or 'configs/cpt.py'), base.get_config()
  own = {
    key: value
    for key, value in defaults.sparsity.items()
    if key not in _OF_MACHINE
  }
  chosen = METHODS[name]
  with config.sparsity.ignore_type(), config.lora.ignore_type():
    for key, value in {**own, **chosen.sparsity}.items():
      config.sparsity[key] = value
    for key, value in {**defaults.lora, **chosen.lora}.items():
      config.lora[key] = value
  return config
