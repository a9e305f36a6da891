"""Phi-3, a Llama that stores some of its matrices as one, rows after rows."""

from collections.abc import Mapping
import math

import numpy as np

from satjax.config.groups import ModelConfig
from satjax.interop import llama, weights

_LAYER = 'model.layers.{}.'
_PARTS = {
  _LAYER + 'self_attn.qkv_proj.weight': (
    'blocks/attention/query',
    'blocks/attention/key',
    'blocks/attention/value',
  ),
  _LAYER + 'mlp.gate_up_proj.weight': ('blocks/mlp/gate', 'blocks/mlp/up'),
}


def split(
  config: ModelConfig, found: Mapping[str, weights.Header | None]
) -> tuple[dict[str, weights.Header | None], list[str]]:
  """The headers of a Llama: those of each part, where it is in the file.

  Args:
    config: the architecture.
    found: headers by tensor name, as `weights.scan` returns them.

  Returns:
    Headers, None where a problem says why there is none; and the problems.
  """
  slots, found, problems = llama.slots(config), dict(found), []
  for layer in range(config.num_layers):
    for template, paths in _PARTS.items():
      whole = template.format(layer)
      names = [llama.TENSORS[path][0].format(layer) for path in paths]
      rows = sum(slots[name].shape[0] for name in names)
      told = whole in found
      header = found.pop(whole, None)
      if not header or header.shape != (rows, config.embed_dim):
        if header or not told:
          problems.append(
            f'{whole}: found {header or "nothing"}, expected'
            f' {[rows, config.embed_dim]}'
          )
        found |= dict.fromkeys(names)
        continue
      start = header.start
      # Of an unknown type, which is refused later, any size will do.
      size = np.dtype(weights.DTYPES.get(header.dtype, np.uint8)).itemsize
      for name in names:
        shape = slots[name].shape
        found[name] = header._replace(shape=shape, start=start)
        start += math.prod(shape) * size
  return found, problems
