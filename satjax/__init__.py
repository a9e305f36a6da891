"""satjax: sparsity-accelerated training and model growth in JAX.

The public functions are imported when they are first used, so that
`import satjax` is quick and pulls in nothing heavy.
"""

import importlib

__version__ = '0.1.0'

_PUBLIC = {
  'load': 'satjax.interop.models',
  'save': 'satjax.interop.models',
  'grow_depth': 'satjax.growth.apply',
  'growth_timing': 'satjax.growth.guidelines',
  'growth_factor': 'satjax.growth.guidelines',
  'speedup': 'satjax.growth.guidelines',
  'lors': 'satjax.sparsity.lors',
  'apply_mask': 'satjax.sparsity.lors',
  'Ladder': 'satjax.sparsity.ladder',
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f'module satjax has no attribute {name!r}')
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
  return sorted([*globals(), *_PUBLIC])
