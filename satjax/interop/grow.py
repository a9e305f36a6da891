"""A model directory grown into another one, tensor by tensor, untrained.

Neither model is ever in memory as a whole. All is computed in float32, where
numbers that growth only repeats stay, bit for bit, what they are.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from satjax import console, errors, files, flops, tree
from satjax.config import specs as specs_lib
from satjax.config.groups import ModelConfig
from satjax.data import special_tokens
from satjax.growth import apply, layer_maps
from satjax.growth.operators import Depth, Learn, Length, Operator
from satjax.interop import (
  huggingface,
  llama,
  models,
  small_files,
  vocabulary,
  weights,
  writer,
)
from satjax.interop.small_files import Settings

# Tokenizers, templates and settings go along.
_SMALL_FILES = (
  *('*.json', '*.jinja', '*.model', '*.txt'),
  f'{special_tokens.TEMPLATES}/*.jinja',
)
_OF_OTHER_WEIGHTS = ('adapter_config.json', writer.CHECKSUMS)
_MARKS = ('', 'new', 'new, zeroed', 'new, random')  # a later one says more


@dataclasses.dataclass(frozen=True)
class Summary:
  """What growth made of a model."""

  operators: tuple[Operator, ...]  # in order
  before: ModelConfig
  after: ModelConfig
  context: tuple[int, int]  # tokens of the longest row, before and after


def grow(
  model_dir: str | os.PathLike,
  out: str | os.PathLike,
  specs: Sequence[Any],
  *,
  seed: int = 0,
  vocab_multiple: int = 0,
  max_shard_bytes: int = 2**30,
) -> Summary:
  """Writes the grown model of a Hugging Face Llama directory.

  Bit for bit what `growth.apply.grow_tree` makes of the loaded parameters in
  float32 with `jax.random.key(seed)`, cast to the stored dtype.

  Args:
    out: made if need be; a model that satjax wrote there is replaced.
    specs: operators as `specs_lib.resolve_all` takes them.
    vocab_multiple: words are added, the mean of the others, until every token
      of the model's tokenizer is one and this divides their number; 0: none.
    max_shard_bytes: weights in one file; as much is held in memory.

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
  tokenizer = models.tokenizer_spec(source) if vocab_multiple else ''
  words = vocabulary.num_rows(before.vocab_size, 0, vocab_multiple, tokenizer)
  wide = dataclasses.replace(before, vocab_size=words)
  operators, after = specs_lib.resolve_all(specs, wide, seed)
  _refuse_untrained(operators)
  dtype = np.dtype(weights.DTYPES[next(iter(headers.values())).dtype])
  contents, context = _small_files(source, operators, after, dtype.name)
  if words > before.vocab_size:
    found = models.tokenizer_of(source)
    said = small_files.described(Settings.read(source), found, words)
    contents[small_files.GENERATION] = files.to_json(said.generation)
  growth = _Growth(source, wide, headers, operators, after, dtype, seed)
  writer.write(
    out,
    {name: slot.shape for name, slot in growth.slots.items()},
    growth.tensor,
    contents,
    dtype=dtype,
    max_shard_bytes=max_shard_bytes,
  )
  return Summary(operators, before, after, context)


class _Growth:
  """The tensors of the grown model, one at a time, as they are stored."""

  def __init__(self, directory, before, headers, operators, after, dtype, seed):
    self.slots = llama.slots(after)
    self._directory, self._headers, self._dtype = directory, headers, dtype
    self._old_slots, self._shapes = llama.slots(before), tree.shapes(before)
    self._operators, self._seed = operators, seed
    models = itertools.accumulate(
      operators, lambda model, operator: operator.target(model), initial=before
    )
    self._depths = [model.num_layers for model in models][:-1]

  def tensor(self, name: str) -> np.ndarray:
    slot = self.slots[name]
    layer = None if slot.index is ... else slot.index
    grown = grown_tensor(
      self._operators, self._depths, slot.path, layer, self._seed, self._read
    )
    with np.errstate(over='ignore'):
      array = huggingface.to_stored(grown, slot, self._dtype)
    if not weights.is_finite(array):
      raise errors.DataError(
        f'{name}: grown numbers are too large for {self._dtype.name}; convert'
        ' the model to bfloat16 or float32, or use less noise'
      )
    return array

  def _read(self, path, layer):
    """A tensor of the source in the layout of `tree.AXES`, as it is stored."""
    name = llama.TENSORS[path][0].format(layer)
    shape = self._shapes[path][0 if layer is None else 1 :]
    try:
      matrix = weights.read_tensor(self._directory, self._headers[name])
    except OSError as error:
      raise errors.StorageError(
        f'{self._directory / self._headers[name].file} cannot be read: {error}'
      ) from error
    if tree.AXES[path][0] == 'vocab':
      matrix = weights.with_rows(matrix, shape[0])
    if not weights.is_finite(matrix):
      weights.refuse(self._directory, [huggingface.not_finite(name)])
    return huggingface.from_stored(matrix, self._old_slots[name], shape)


def grown_tensor(
  operators: Sequence[Operator],
  depths: Sequence[int],
  name: str,
  layer: int | None,
  seed: int,
  read: Callable[[str, int | None], Any],
) -> Any:
  """One layer of one parameter of the grown model, and no more than it takes.

  Equal to what `apply.grow_tree` makes of the whole tree in float32 with
  `jax.random.key(seed)`.

  Args:
    depths: number of layers before each operator.
    name: of the parameter, as in `tree.AXES`.
    layer: its number in the grown model; None: the parameter has no layers.
    read: from a name and an old layer (or None) to that array.
  """
  if not operators:
    return read(name, layer)
  *before, last = operators
  maps = apply.inputs(last, depths[-1])

  def below(rows):
    source = layer if layer is None else rows[layer]
    return grown_tensor(before, depths[:-1], name, source, seed, read)

  key = jax.random.fold_in(jax.random.key(seed), len(before))
  if layer is None:
    parts = [jnp.asarray(below(maps[0]), jnp.float32)]
    return apply.transform(last, name, parts, None, key, depths[-1])
  parts = [jnp.asarray(below(rows), jnp.float32)[None] for rows in maps]
  return apply.transform(last, name, parts, (layer,), key, depths[-1])[0]


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
  old = huggingface.max_length(source)
  new = old * math.prod(op.factor for op in operators if type(op) is Length)
  stored = weights.read_json(source, 'config.json')
  described = llama.describe(after, dtype, new, stored) | writer.OURS
  _, problems = llama.config_of(described)
  if problems:
    raise errors.ConfigError(
      'the grown model could not be loaded; use other targets:'
      + ''.join(f'\n  {problem}' for problem in problems)
    )
  contents = {'config.json': files.to_json(described)}
  paths = itertools.chain(*map(source.glob, _SMALL_FILES))
  names = {str(p.relative_to(source)) for p in paths if not p.is_dir()}
  for name in sorted(names - {*_OF_OTHER_WEIGHTS, *contents}):
    if not name.endswith('.index.json'):
      contents[name] = weights.read_small(source, name)
  return contents, (old, new)


def render(summary: Summary) -> str:
  """Markdown: sizes before and after, layers and sources, what to expect."""
  layers = _layers(summary.operators, summary.before.num_layers)
  rows = []
  for number, (sources, mark) in enumerate(layers):
    made_of = '-' if mark == _MARKS[-1] else ' and '.join(map(str, sources))
    rows.append((f'{number}', made_of, mark))
  sizes = console.markdown(('', 'before', 'after'), [*_sizes(summary)])
  layers_table = console.markdown(('layer', 'made of', ''), rows)
  rate = layer_maps.connection_rate([sources[0] for sources, _ in layers])
  return f'{sizes}\n{layers_table}\n{_expect(summary, rate)}'


def _sizes(summary: Summary) -> Iterator[tuple[str, str, str]]:
  """Name, before and after."""
  before, after = summary.before, summary.after
  for name in llama.KEYS:
    old, new = getattr(before, name), getattr(after, name)
    if type(old) is int:
      yield name, f'{old}', f'{new}'
    elif old != new:
      yield name, f'{old:g}', f'{new:g}'
  yield 'parameters', *(f'{flops.num_params(c):,}' for c in (before, after))
  if summary.context[0] != summary.context[1]:
    yield 'longest row, tokens', *map(str, summary.context)


def _expect(summary: Summary, rate: float) -> str:
  lines = [f'R_c = {rate:.3g}: the share of neighbours that were neighbours.']
  if all(operator.preserves for operator in summary.operators):
    lines.append('The function is preserved by design, but for rounding.')
  else:
    lines.append('The function is not preserved.')
  if any(operator.is_random for operator in summary.operators):
    lines.append(
      'Random units count in full at once: a directory holds no mask. A run'
      ' lets them in slowly (config.growth.hops with ramp_tokens).'
    )
  return '\n'.join(lines)


def _layers(
  operators: Sequence[Operator], num_layers: int
) -> list[tuple[tuple[int, ...], str]]:
  """Of each grown layer, the old ones that it is made of, and what is new."""
  layers = [((n,), '') for n in range(num_layers)]
  for operator in operators:
    uses = list(zip(*apply.inputs(operator, len(layers))))
    marks = [''] * len(uses)
    if isinstance(operator, Depth):
      none = [False] * len(uses)
      flags = operator.is_new, operator.zero_out or none, operator.fresh or none
      marks = [_MARKS[max(n, 2 * z, 3 * r)] for n, z, r in zip(*flags)]
    layers = [
      (
        tuple(dict.fromkeys(n for row in rows for n in layers[row][0])),
        max(layers[rows[0]][1], mark, key=_MARKS.index),
      )
      for rows, mark in zip(uses, marks)
    ]
  return layers
