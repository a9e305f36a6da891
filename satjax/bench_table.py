"""From the times of a bench to claims: spread, noise floor, a table."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

import numpy as np

from satjax import bench_torch, errors
from satjax.train import workdir


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
  """How far from 1 the ratio of equal arms strays; `again`: their `spread`."""
  return max(abs(again['median'] - 1), again['iqr'])


def claim(value: float, floor: float) -> str:
  """A ratio in words, which claim nothing below the noise floor."""
  return 'no difference' if abs(value - 1) <= floor else f'{value:.3f}x'


def render(result: Mapping[str, Any]) -> str:
  """The result as a Markdown table, and what it takes to judge it."""
  floor, arms = result['noise'], result['arms']
  memory = arms['dense']['memory']
  lines = [
    '| arm | ms/step | tokens/s | time / dense | range | speed-up'
    ' | FLOPs limit | efficiency | time / twin | refresh | memory | compile s'
    ' |',
    '|' + ' --- |' * 12,
  ]
  for name, arm in arms.items():
    ratio = arm['ratio']
    cells = [
      name,
      f'{1e3 * arm["seconds"]:.1f}',
      f'{arm["tokens_per_second"]:,.0f}',
      f'{ratio["median"]:.3f}',
      f'{ratio["min"]:.3f} to {ratio["max"]:.3f}',
      claim(1 / ratio['median'], floor) if name != 'dense' else '1',
      f'{arm["limit"]:.3f}x',
      f'{arm["efficiency"]:.3f}',
      f'{arm["twin"]["median"]:.3f}' if 'twin' in arm else '',
      f'{arm["refresh_share"]:.1%}' if 'refresh_share' in arm else '',
      f'{arm["memory"] / memory:.3f}' if 'memory' in arm else '',
      f'{arm["compile_seconds"]:.1f}',
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines + ['', *_notes(result)]) + '\n'


def _notes(result):
  """What the table leaves out, as a Markdown list."""
  arms, config = result['arms'], result['config']
  environment = result['environment']
  packages = {**environment['packages'], **result['torch']}
  notes = [
    f'Noise floor {result["noise"]:.3f}, from two equal dense arms: ratios'
    ' that are no further from 1 are "no difference".',
    f'Medians of {result["rounds"]} rounds of {result["steps"]} steps, each of'
    f' {config["train"]["batch_size"]} x {config["data"]["seq_len"]} tokens in'
    f' {config["model"]["dtype"]}.',
  ]
  every = config['sparsity']['refresh_every']
  for name, arm in arms.items():
    if 'refresh_seconds' in arm:
      step = 1e3 * float(np.median(arm['step_seconds']))
      refresh = 1e3 * float(np.median(arm['refresh_seconds']))
      probe = 1e3 * float(np.median(arm['probe_seconds']))
      share = probe / every / (1e3 * arm['seconds'])
      notes.append(
        f'{name}: step {step:.1f} ms; refresh {refresh:.1f} ms every {every}'
        f' steps, of which the probe is {probe:.1f} ms: {share:.1%} of a step.'
      )
  if any(', twin' in name for name in arms):
    notes.append(
      'A twin of skip is a natively small dense model; a twin of another'
      ' forward pass is the same program, natively small, without refreshes.'
    )
  notes.append(
    'Memory: of a step at its peak by the compiler, and of what rests on the'
    f' device, over dense ({arms["dense"]["memory"] / 2**20:.0f} MiB).'
  )
  torch = [arms[n]['ratio']['median'] for n in bench_torch.NAMES if n in arms]
  if torch:
    notes.append(
      'Speed of dense against the faster PyTorch arm:'
      f' {claim(min(torch), result["noise"])}.'
    )
  for name, reason in result['unavailable'].items():
    notes.append(f'{name} is unavailable: {reason}')
  load = result['load_average']
  notes += [
    f'{environment["devices"]}, {environment["cpu_count"]} CPUs,'
    f' {environment["platform"]}, load average {load["before"][0]:.2f} before'
    f' and {load["after"][0]:.2f} after.',
    f'Commit {environment["commit"]}, XLA_FLAGS'
    f' {environment["xla_flags"]!r}, '
    + ', '.join(f'{name} {version}' for name, version in packages.items())
    + '.',
  ]
  return [f'- {note}' for note in notes]


def write(
  out: str | os.PathLike, result: Mapping[str, Any], table: str
) -> None:
  """Writes a result as JSON and its table beside it, as .md.

  Raises:
    StorageError: `out` can not be written.
  """
  path = pathlib.Path(out)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(path, result)
    path.with_suffix('.md').write_text(table)
  except OSError as error:
    raise errors.StorageError(
      f'can not write {path}: {error.strerror}; choose another file'
    ) from error
