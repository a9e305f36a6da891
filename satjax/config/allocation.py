"""An allocation of omission rates that `satjax probe` has written."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

from satjax import errors

KIND = 'satjax probe'
FORWARD = 'skip'  # what is probed: what is left out does nothing
# What tells models of different shapes from each other.
SHAPE = (
  *('num_layers', 'embed_dim', 'num_heads', 'num_kv_heads', 'head_dim'),
  *('mlp_dim', 'vocab_size'),
)


def read(path: str) -> dict[str, Any]:
  """The content of a file of `satjax probe --out`.

  Raises:
    ConfigError: it cannot be read, or is none.
  """
  try:
    found = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise errors.ConfigError(
      f'--allocation={path} cannot be read ({error}); name a file that'
      ' `satjax probe --out=FILE.json` wrote'
    ) from error
  groups = ('model', 'sparsity')
  if (
    not isinstance(found, dict)
    or found.get('kind') != KIND
    or not all(isinstance(found.get(name), dict) for name in groups)
  ):
    raise errors.ConfigError(
      f'--allocation={path} is no file of a probe; name one that'
      ' `satjax probe --out=FILE.json` wrote'
    )
  return found


def overrides(path: str, given: Sequence[str] = ()) -> list[str]:
  """What it says as `--config.sparsity.KEY=VALUE`, and after it what is given.

  Of a key that both have, what is given holds. Raises as `read`.
  """
  names = {argument.partition('=')[0] for argument in given}
  found = {
    f'--config.sparsity.{k}': v for k, v in read(path)['sparsity'].items()
  }
  own = [f'{name}={x}' for name, x in found.items() if name not in names]
  return [*own, *given]


def check(path: str, config: Any) -> None:
  """Raises ConfigError if it does not suit a configuration (`Groups`)."""
  probed, sparsity = read(path)['model'], config.sparsity
  for axis in sparsity.rates:
    how = sparsity.forward(axis)
    if sparsity.rates[axis] and how != FORWARD:
      raise errors.ConfigError(
        f'--allocation={path} is of omitted_forward {FORWARD!r}, and of {axis}'
        f' it is {how!r} here, which saves less and costs nothing at once; use'
        f' --config.sparsity.omitted_forward={FORWARD}, or no allocation'
      )
  for key in SHAPE:
    if (own := getattr(config.model, key)) != probed.get(key):
      raise errors.ConfigError(
        f'--allocation={path} is of a model with {key} {probed.get(key)!r}, and'
        f' config.model.{key} is {own}; probe this model: satjax probe'
      )
