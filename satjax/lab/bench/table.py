"""From the times of arms to claims: ratios, noise floor, a table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from satjax import console, errors, files, flops
from satjax.config.run import Config
from satjax.lab.bench import machine as bench_machine

RANGE = '{min:.3f} to {max:.3f}'
Times = Mapping[str, Sequence[float]]


def figures(
  config: Config,
  arms: Mapping[str, Any],
  seconds: Mapping[str, np.ndarray],
  refreshes: Times,
  probes: Times,
) -> dict[str, dict[str, Any]]:
  """Figures of the arms of a group; a SAT step bears its share of a refresh.

  Seconds of steps, refreshes and probes are by arm, in every round; `config`
  is that of the dense arm.
  """
  refresh = {name: float(np.median(t)) for name, t in refreshes.items()}
  every = config.sparsity.refresh_every
  total = {n: t + refresh.get(n, 0.0) / every for n, t in seconds.items()}
  dense, result = arms['dense'], {}
  for name, arm in arms.items():
    median = float(np.median(total[name]))
    ratio = spread(total[name] / total['dense'])
    limit = dense.flops / arm.flops
    found = result[name] = {
      'seconds': median,
      'tokens_per_second': config.tokens_per_step / median,
      'flops': arm.flops,
      'compile_seconds': arm.compile_seconds,
      **arm.memory,
      **_shares(arm.flops / median, dense.setup.mesh.devices),
      'step_seconds': seconds[name].tolist(),
      'dense_step_seconds': seconds['dense'].tolist(),
      'ratio': ratio,
      'limit': limit,
      'efficiency': 1 / ratio['median'] / limit,
    }
    if name in refresh:
      found['refresh_seconds'] = refreshes[name]
      found['probe_seconds'] = probes[name]
      found['refresh_share'] = refresh[name] / every / median
    if f'{name}, twin' in arms:
      found['twin'] = spread(total[name] / total[f'{name}, twin'])
  return result


def _shares(speed, devices):
  """Executed FLOPs a second over what devices can do, where that is known."""
  kind = devices.flat[0].device_kind
  peaks = {
    'mfu': flops.peak_flops(kind),
    'of_measured': bench_machine.MEASURED.get(kind),
  }
  return {n: speed / x / devices.size for n, x in peaks.items() if x}


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
  """How far from 1 a ratio of equal arms, or its inverse, strays.

  `again` is the `spread` of that ratio.
  """
  median = again['median']
  return max(abs(median - 1), abs(1 / median - 1), again['iqr'])


def claim(value: float, floor: float) -> str:
  """A ratio in words, which claim nothing below the noise floor."""
  return 'no difference' if abs(value - 1) <= floor else f'{value:.3f}x'


def speedup(arm: Mapping[str, Any], floor: float) -> str:
  """Of an arm over the dense one, in the same words."""
  return claim(1 / arm['ratio']['median'], floor)


def check_losses(
  dense: float, others: Mapping[str, float], dtype: str, platform: str = 'cpu'
) -> None:
  """Refuses to compare arms whose first loss is not that of the dense one.

  The dtype of activations sets how closely they must agree, and accelerators
  round the factors of float32 matmuls.

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
  arms = result['arms'].items()
  rows = [_cells(name, arm, result) for name, arm in arms]
  heads = [head for head in rows[0] if any(row[head] for row in rows)]
  table = console.markdown(
    heads, [[row[head] for head in heads] for row in rows]
  )
  notes = _notes_on_times, _notes_on_arms, notes_on_machine
  text = ''.join(f'- {note}\n' for of in notes for note in of(result))
  return f'{table}\n{text}'


def _cells(name, arm, result):
  """What there is to say of an arm, by column; '' for what is not known."""

  def known(key, form, unit=1):
    return form.format(arm[key] / unit) if key in arm else ''

  dense = result['arms']['dense']
  seconds = [f'{x:.1f}' for x in arm['compile_seconds'].values()]
  return {
    'arm': name,
    'ms/step': f'{1e3 * arm["seconds"]:.1f}',
    'tokens/s': f'{arm["tokens_per_second"]:,.0f}',
    'time / dense': f'{arm["ratio"]["median"]:.3f}',
    'range': RANGE.format(**arm['ratio']),
    'speed-up': '1' if name == 'dense' else speedup(arm, result['noise']),
    'FLOPs limit': f'{arm["limit"]:.3f}x',
    'efficiency': f'{arm["efficiency"]:.3f}',
    'MFU': known('mfu', '{:.1%}'),
    'of measured': known('of_measured', '{:.1%}'),
    'time / twin': f'{arm["twin"]["median"]:.3f}' if 'twin' in arm else '',
    'refresh': known('refresh_share', '{:.1%}'),
    'memory': known('memory', '{:.3f}', dense['memory']),
    'peak GiB': known('peak_memory', '{:.2f}', 2**30),
    'compile s': ' / '.join(seconds),
  }


def notes_on_machine(result: Mapping[str, Any]) -> Iterator[str]:
  """Where a result is from: devices, load, clocks, versions."""
  environment, load = result['environment'], result['load_average']
  packages = environment['packages'] | result.get('torch', {})
  versions = ', '.join(f'{name} {text}' for name, text in packages.items())
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
    f'Commit {environment["commit"]}, XLA_FLAGS {environment["xla_flags"]!r},'
    f' {versions}.'
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
      kinds = ('step', 'refresh', 'probe')
      step, refresh, probe = (np.median(arm[f'{k}_seconds']) for k in kinds)
      share = probe / every / arm['seconds']
      yield (
        f'{name}: step {1e3 * step:.1f} ms; refresh {1e3 * refresh:.1f} ms'
        f' every {every} steps, of which the probe is {1e3 * probe:.1f} ms:'
        f' {share:.1%} of a step.'
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
  mebibytes = arms['dense']['memory'] / 2**20
  peak = (
    ' Peak: by the allocator, of the dense arm and of PyTorch, alone on the'
    ' device.'
  )
  yield (
    'Memory: of a step at its peak by the compiler, and of what rests on the'
    f' device, over dense ({mebibytes:.0f} MiB).'
    + (peak if any('peak_memory' in arm for arm in arms.values()) else '')
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


def publish(
  out: str | os.PathLike | None,
  result: Mapping[str, Any],
  table: Callable[[Any], str],
) -> Any:
  """The result as JSON has it; writes that and its table, if `out` is given."""
  result = json.loads(json.dumps(result))
  if out is not None:
    write(out, result, table(result))
  return result


def check(out: str | os.PathLike | None) -> None:
  """Raises before long work what `write` would after it; None: nothing.

  Raises:
    ConfigError: the name is no JSON file's.
    StorageError: it cannot be written.
  """
  if out is None:
    return
  path = pathlib.Path(out)
  if path.suffix != '.json' or path.is_dir():
    raise errors.ConfigError(
      f'--out={out}: JSON is written, and its table beside it as .md; name a'
      ' file that ends in .json, such as out.json'
    )
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()
  except OSError as error:
    raise errors.StorageError(
      f'cannot write {path}: {error.strerror}; choose another place'
    ) from error


def write(
  out: str | os.PathLike, result: Mapping[str, Any], table: str
) -> None:
  """Writes a result as JSON and its table beside it, as .md."""
  path = pathlib.Path(out)
  files.save(path, json.dumps(result, indent=2) + '\n')
  files.save(path.with_suffix('.md'), table)
