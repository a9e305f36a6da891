"""From the times of a bench to claims: spread, noise floor, a table."""

from collections.abc import Iterator, Mapping
import os
import pathlib
from typing import Any

import numpy as np

from satjax import errors, files


def spread(values: np.ndarray) -> dict[str, float]:
  """Median, range and interquartile range."""
  low, median, high = np.percentile(values, [25, 50, 75]).tolist()
  return {
    'median': median,
    'min': float(np.min(values)),
    'max': float(np.max(values)),
    'iqr': high - low,
  }


def noise_floor(again: Mapping[str, float]) -> float:
  """How far from 1 the ratio of equal arms strays, or its inverse.

  Args:
    again: the `spread` of that ratio.
  """
  median = again['median']
  return max(abs(median - 1), abs(1 / median - 1), again['iqr'])


def claim(value: float, floor: float) -> str:
  """A ratio in words, which claim nothing below the noise floor."""
  return 'no difference' if abs(value - 1) <= floor else f'{value:.3f}x'


def check_losses(
  dense: float, others: Mapping[str, float], dtype: str, platform: str = 'cpu'
) -> None:
  """Refuses to compare arms that compute something else than the dense one.

  Args:
    dense: loss of the dense arm on its first batch.
    others: losses on the same batch of the arms that must agree with it.
    dtype: of activations; it sets how closely they agree.
    platform: of the devices; accelerators round the factors of float32 matmuls.

  Raises:
    SatjaxError: names the arms that disagree, and the figures.
  """
  tolerance = {'float32': 1e-5, 'bfloat16': 1e-2}[dtype]
  if platform != 'cpu':
    tolerance = max(tolerance, 1e-3)
  wrong = [
    f'{name} {loss:.7g}'
    for name, loss in others.items()
    if not abs(loss - dense) <= tolerance * abs(dense)
  ]
  if wrong:
    raise errors.SatjaxError(
      f'the first loss of the dense arm is {dense:.7g}, but of'
      f' {", ".join(wrong)}; they must agree to {tolerance:g} (relative,'
      f' {dtype}), or their times compare different work'
    )


def render(result: Mapping[str, Any]) -> str:
  """The result as a Markdown table, and what it takes to judge it."""
  columns = _columns(result)
  lines = [
    f'| {" | ".join(columns)} |',
    '|' + ' --- |' * len(columns),
    *(
      f'| {" | ".join(cell(name, arm) for cell in columns.values())} |'
      for name, arm in result['arms'].items()
    ),
  ]
  return '\n'.join(lines + ['', *_notes(result)]) + '\n'


def _columns(result):
  """From the head of a column to its cell, a function of (name, arm)."""
  floor, arms = result['noise'], result['arms']
  memory = arms['dense']['memory']

  def if_known(key, cell):
    return lambda name, arm: cell(arm[key]) if key in arm else ''

  def gain(name, arm):
    same = name == 'dense'
    return '1' if same else claim(1 / arm['ratio']['median'], floor)

  columns = {
    'arm': lambda name, arm: name,
    'ms/step': lambda name, arm: f'{1e3 * arm["seconds"]:.1f}',
    'tokens/s': lambda name, arm: f'{arm["tokens_per_second"]:,.0f}',
    'time / dense': lambda name, arm: f'{arm["ratio"]["median"]:.3f}',
    'range': lambda name, arm: '{min:.3f} to {max:.3f}'.format(**arm['ratio']),
    'speed-up': gain,
    'FLOPs limit': lambda name, arm: f'{arm["limit"]:.3f}x',
    'efficiency': lambda name, arm: f'{arm["efficiency"]:.3f}',
    'MFU': if_known('mfu', '{:.1%}'.format),
    'of measured': if_known('of_measured', '{:.1%}'.format),
    'time / twin': if_known('twin', lambda x: f'{x["median"]:.3f}'),
    'refresh': if_known('refresh_share', '{:.1%}'.format),
    'memory': if_known('memory', lambda x: f'{x / memory:.3f}'),
    'peak GiB': if_known('peak_memory', lambda x: f'{x / 2**30:.2f}'),
    'compile s': lambda name, arm: ' / '.join(
      f'{seconds:.1f}' for seconds in arm['compile_seconds'].values()
    ),
  }
  return {
    head: cell
    for head, cell in columns.items()
    if any(cell(name, arm) for name, arm in arms.items())
  }


def _notes(result):
  """What the table leaves out, as a Markdown list."""
  notes = _notes_on_times, _notes_on_arms, notes_on_machine
  return [f'- {note}' for of in notes for note in of(result)]


def notes_on_machine(result: Mapping[str, Any]) -> Iterator[str]:
  """Where a result is from: devices, load, clocks, versions."""
  environment, load = result['environment'], result['load_average']
  packages = {**environment['packages'], **result.get('torch', {})}
  yield (
    f'{environment["devices"]}, {environment["cpu_count"]} CPUs,'
    f' {environment["platform"]}, load average {load["before"][0]:.2f} before'
    f' and {load["after"][0]:.2f} after.'
  )
  for when, rows in result['clocks'].items():
    for row in rows:
      values = ', '.join(f'{key} {value}' for key, value in row.items())
      yield f'nvidia-smi {when}: {values}.'
  yield (
    f'Commit {environment["commit"]}, XLA_FLAGS {environment["xla_flags"]!r}, '
    + ', '.join(f'{name} {version}' for name, version in packages.items())
    + '.'
  )


def _notes_on_times(result):
  arms, config = result['arms'], result['config']
  dtype = config['model']['dtype']
  yield (
    f'Noise floor {result["noise"]:.3f}, from two equal dense arms: ratios'
    ' that are no further from 1 are "no difference".'
  )
  yield (
    f'Medians of {result["rounds"]} rounds of {result["steps"]} steps, each of'
    f' {config["train"]["batch_size"]} x {config["data"]["seq_len"]} tokens in'
    f' {dtype}, attention {config["model"]["attention"]!r}. Ratios are of arms'
    ' in the same round; arms take turns, and the order is reversed in every'
    ' second round.'
  )
  if any('mfu' in arm for arm in arms.values()):
    yield (
      'MFU: executed FLOPs over the data sheet, causal attention by half; of'
      ' measured: over what large matmuls of random numbers reach.'
    )
    if dtype == 'float32':
      yield 'Matmuls are TF32, in JAX (its default on a GPU) and in PyTorch.'
  every = config['sparsity']['refresh_every']
  for name, arm in arms.items():
    if 'refresh_seconds' in arm:
      step = 1e3 * float(np.median(arm['step_seconds']))
      refresh = 1e3 * float(np.median(arm['refresh_seconds']))
      probe = 1e3 * float(np.median(arm['probe_seconds']))
      share = probe / every / (1e3 * arm['seconds'])
      yield (
        f'{name}: step {step:.1f} ms; refresh {refresh:.1f} ms every {every}'
        f' steps, of which the probe is {probe:.1f} ms: {share:.1%} of a step.'
      )


def _notes_on_arms(result):
  arms = result['arms']
  groups = {}
  for name, arm in arms.items():
    groups.setdefault(arm['group'], []).append(name)
  if len(groups) > 1:
    yield 'In memory together with the dense arm: ' + '; '.join(
      ', '.join(names) for _, names in sorted(groups.items())
    )
  if any(', twin' in name for name in arms):
    yield (
      'A twin of skip is a natively small dense model; a twin of another'
      ' forward pass is the same program, natively small, without refreshes.'
    )
  yield (
    'Memory: of a step at its peak by the compiler, and of what rests on the'
    f' device, over dense ({arms["dense"]["memory"] / 2**20:.0f} MiB). Peak: by'
    ' the allocator, of the dense arm and of PyTorch, alone on the device.'
    if any('peak_memory' in arm for arm in arms.values())
    else 'Memory: of a step at its peak by the compiler, and of what rests on'
    f' the device, over dense ({arms["dense"]["memory"] / 2**20:.0f} MiB).'
  )
  yield (
    'Compile: with no cache / with one on disk; of PyTorch forward and backward'
    ' pass, with no cache.'
  )
  torch = {n: a['ratio']['median'] for n, a in arms.items() if 'torch' in n}
  if torch:
    best = min(torch, key=torch.get)
    yield (
      'Speed of dense over the best PyTorch arm, dense / best torch:'
      f' {claim(torch[best], result["noise"])} ({best}).'
    )
  for name, reason in result['unavailable'].items():
    yield f'{name} is unavailable: {reason}'


def write(
  out: str | os.PathLike, result: Mapping[str, Any], table: str
) -> None:
  """Writes a result as JSON and its table beside it, as .md.

  Raises:
    StorageError: `out` cannot be written.
  """
  path = pathlib.Path(out)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, result)
    path.with_suffix('.md').write_text(table)
  except OSError as error:
    raise errors.StorageError(
      f'cannot write {path}: {error.strerror}; choose another file'
    ) from error
