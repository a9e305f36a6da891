"""A model directory grown into another one, tensor by tensor, untrained.

Neither model is ever in memory as a whole. Tensors that growth only repeats
go from file to file as they are; the others are computed in float32.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from satjax import errors, flops, tree
from satjax.config import specs as specs_lib
from satjax.config.groups import ModelConfig
from satjax.growth import apply
from satjax.growth.operators import Learn, Length, Operator
from satjax.interop import checksums, huggingface, llama, weights, writer

_SHARD_BYTES = 2**30  # held in memory
# Tokenizers, templates and settings go along.
_SMALL_FILES = ('*.json', '*.jinja', '*.model', '*.txt')
_OF_OTHER_WEIGHTS = ('adapter_config.json', checksums.FILE)
# Keys of config.json that growth makes untrue: the name of the source, code
# that stays behind, settings of each layer, and what `describe` says anew.
_STALE = ('_name_or_path', 'auto_map', 'layer_types', 'rope_scaling')
_CONTEXT = 2048  # tokens; what transformers assumes of a Llama


@dataclasses.dataclass(frozen=True)
class Summary:
  """What growth made of a model.

  Attributes:
    operators: that were carried out, in order.
    before: the architecture of the source.
    after: that of the result.
    context: longest row before and after, in tokens.
    dtype: of the stored numbers.
  """

  operators: tuple[Operator, ...]
  before: ModelConfig
  after: ModelConfig
  context: tuple[int, int]
  dtype: str

  @property
  def num_params(self) -> tuple[int, int]:
    """How many numbers before and after."""
    return flops.num_params(self.before), flops.num_params(self.after)

  @property
  def preserves(self) -> bool:
    """Whether the function is the same, but for rounding, by design."""
    return all(operator.preserves for operator in self.operators)


def grow(
  model_dir: str | os.PathLike,
  out: str | os.PathLike,
  specs: Sequence[Any],
  *,
  seed: int = 0,
  max_shard_bytes: int = _SHARD_BYTES,
  start: Callable[[int], Callable[[int], None]] | None = None,
) -> Summary:
  """Writes the grown model of a Hugging Face Llama directory.

  Bit for bit what `growth.apply.grow_tree` makes of the loaded parameters in
  float32 with `jax.random.key(seed)`, cast to the stored dtype.

  Args:
    model_dir: the source; stays as it is.
    out: made if need be; a model that satjax wrote there is replaced.
    specs: operators as `specs_lib.resolve_all` takes them.
    seed: of random duplicates, fresh weights and noise.
    max_shard_bytes: weights in one file; as much is held in memory.
    start: from the bytes of work ahead to a function that is called with those
      that are done; shows progress.

  Raises:
    ConfigError: an operator that does not fit, needs a run, or leads to a
      model that cannot be loaded; `out` is the source.
    DataError: the source cannot be used.
    StorageError: a file cannot be read, or `out` not be written.
  """
  source = Path(model_dir)
  if source.resolve() == Path(out).resolve():
    raise errors.ConfigError(
      f'{source} is the model and the directory to write; choose another one'
      ' to write'
    )
  before, headers = huggingface.check(source)
  operators, after = specs_lib.resolve_all(specs, before, seed)
  _refuse_untrained(operators)
  dtype = np.dtype(weights.DTYPES[next(iter(headers.values())).dtype])
  contents, context = _small_files(source, operators, after, dtype.name)
  growth = _Growth(source, before, headers, operators, after, dtype, seed)
  num_bytes = flops.num_params(after) * dtype.itemsize
  writer.write(
    out,
    {name: slot.shape for name, slot in growth.slots.items()},
    growth.tensor,
    contents,
    dtype=dtype,
    max_shard_bytes=max_shard_bytes,
    tick=start(2 * num_bytes) if start else lambda num_bytes: None,
  )
  return Summary(operators, before, after, context, dtype.name)


class _Growth:
  """The tensors of the grown model, one at a time, as they are stored."""

  def __init__(self, directory, before, headers, operators, after, dtype, seed):
    self.slots = llama.slots(after)
    self._directory, self._headers, self._dtype = directory, headers, dtype
    self._old_slots, self._shapes = llama.slots(before), tree.shapes(before)
    self._operators, self._seed = operators, seed
    depths, model = [], before
    for operator in operators:
      depths.append(model.num_layers)
      model = operator.target(model)
    self._depths = depths
    self._finite = set()

  @functools.cached_property
  def _key(self):
    return jax.random.key(self._seed)  # wakes JAX up, which copies do not need

  def tensor(self, name: str) -> np.ndarray:
    slot = self.slots[name]
    layer = None if slot.index is ... else slot.index
    copied, source = self._source(slot.path, layer)
    if copied:
      return self._stored(_name(slot.path, source))
    grown = grown_tensor(
      self._operators, self._depths, slot.path, layer, self._key, self._read
    )
    with np.errstate(over='ignore'):
      array = huggingface.to_stored(grown, slot, self._dtype)
    if not weights.is_finite(array):
      raise errors.DataError(
        f'{name}: grown numbers are too large for {self._dtype.name}; convert'
        ' the model to bfloat16 or float32, or use less noise'
      )
    return array

  def _source(self, path, layer):
    """Whether a tensor repeats an old one, and of which layer."""
    for operator, depth in zip(self._operators[::-1], self._depths[::-1]):
      if not apply.is_copy(operator, path, layer):
        return False, None
      if layer is not None:
        layer = apply.inputs(operator, depth)[0][layer]
    return True, layer

  def _read(self, path, layer):
    """A tensor of the source in the layout of `tree.AXES`, float32."""
    name = _name(path, layer)
    shape = self._shapes[path][0 if layer is None else 1 :]
    matrix = self._stored(name)
    array = huggingface.from_stored(matrix, self._old_slots[name], shape)
    return array.astype(np.float32)

  def _stored(self, name):
    try:
      matrix = weights.read_tensor(self._directory, self._headers[name])
    except OSError as error:
      raise errors.StorageError(
        f'{self._directory / self._headers[name].file} cannot be read: {error}'
      ) from error
    if name not in self._finite:
      if not weights.is_finite(matrix):
        weights.refuse(self._directory, [huggingface.not_finite(name)])
      self._finite.add(name)
    return matrix


def grown_tensor(
  operators: Sequence[Operator],
  depths: Sequence[int],
  name: str,
  layer: int | None,
  key: jax.Array,
  read: Callable[[str, int | None], Any],
) -> Any:
  """One layer of one parameter of the grown model, and no more than it takes.

  Equal to what `apply.grow_tree` makes of the whole tree.

  Args:
    operators: in order.
    depths: number of layers before each of them.
    name: of the parameter, as in `tree.AXES`.
    layer: its number in the grown model; None: the parameter has no layers.
    key: as for `apply.grow_tree`.
    read: from a name and an old layer (or None) to that array.
  """
  if not operators:
    return read(name, layer)
  *before, last = operators
  maps = apply.inputs(last, depths[-1])

  def below(rows):
    source = layer if layer is None else rows[layer]
    return grown_tensor(before, depths[:-1], name, source, key, read)

  if apply.is_copy(last, name, layer):
    return below(maps[0])
  number = jax.random.fold_in(key, len(before))
  if layer is None:
    parts = [jnp.asarray(below(maps[0]))]
    return apply.transform(last, name, parts, None, number, depths[-1])
  parts = [jnp.asarray(below(rows))[None] for rows in maps]
  return apply.transform(last, name, parts, (layer,), number, depths[-1])[0]


def _name(path: str, layer: int | None) -> str:
  return llama.TENSORS[path][0].format(layer)


def _refuse_untrained(operators: Sequence[Operator]) -> None:
  for operator in operators:
    if isinstance(operator, Learn):
      raise errors.ConfigError(
        "operator 'learn' trains its maps: use it in a run (config.growth.hops)"
      )
    if operator.ramp_tokens:
      raise errors.ConfigError(
        f'ramp_tokens = {operator.ramp_tokens:g} lets new units in while a'
        ' model trains: leave it out, or use it in a run (config.growth.hops)'
      )


def _small_files(
  source: Path, operators: Sequence[Operator], after: ModelConfig, dtype: str
) -> tuple[dict[str, bytes], tuple[int, int]]:
  """Files without weights by name, and the longest row before and after."""
  stored = weights.read_json(source, 'config.json')
  old = stored.get('max_position_embeddings') or _CONTEXT
  if type(old) is not int or old < 1:
    problem = (
      f'max_position_embeddings = {errors.brief(old)}; allowed: at least'
    )
    weights.refuse(source / 'config.json', [f'{problem} 1'])
  new = old * math.prod(op.factor for op in operators if type(op) is Length)
  kept = {key: value for key, value in stored.items() if key not in _STALE}
  described = kept | llama.describe(after, dtype, new) | writer.OURS
  _, problems = llama.config_of(described)
  if problems:
    raise errors.ConfigError(
      'the grown model could not be loaded; use other targets:'
      + ''.join(f'\n  {problem}' for problem in problems)
    )
  contents = {'config.json': writer.to_json(described)}
  for name in _names_of_small_files(source):
    contents.setdefault(name, weights.read_small(source, name))
  return contents, (old, new)


def _names_of_small_files(source: Path) -> list[str]:
  return sorted(
    path.name
    for pattern in _SMALL_FILES
    for path in source.glob(pattern)
    if not path.is_dir()
    and not path.name.endswith('.index.json')
    and path.name not in _OF_OTHER_WEIGHTS
  )
