"""From the times of the arms of a group to the figures of a benchmark."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from satjax import flops
from satjax.config.run import Config
from satjax.lab.bench import machine as bench_machine
from satjax.lab.bench import table as bench_table
from satjax.lab.bench import torch_arms as bench_torch

Times = Mapping[str, Sequence[float]]


def figures(
  config: Config,
  arms: Mapping[str, Any],
  seconds: Mapping[str, np.ndarray],
  refreshes: Times,
  probes: Times,
  peak: int | None,
) -> dict[str, dict[str, Any]]:
  """Figures of each arm; a SAT step bears its share of a refresh.

  Args:
    config: of the dense arm.
    arms: of a group, the dense one among them.
    seconds: of a step, by arm, in every round.
    refreshes: seconds of a refresh.
    probes: seconds of its probe.
    peak: most bytes that the dense arm has had in use; None if unknown.
  """
  refresh = {name: float(np.median(t)) for name, t in refreshes.items()}
  every = config.sparsity.refresh_every
  total = {n: t + refresh.get(n, 0.0) / every for n, t in seconds.items()}
  dense = arms['dense'].compiled
  result = {}
  for name, arm in arms.items():
    median = float(np.median(total[name]))
    result[name] = {
      'seconds': median,
      'tokens_per_second': config.tokens_per_step / median,
      **_of_arm(arm, median, dense.setup.mesh),
      'step_seconds': seconds[name].tolist(),
      'dense_step_seconds': seconds['dense'].tolist(),
    }
    found = result[name]
    ratio = found['ratio'] = bench_table.spread(total[name] / total['dense'])
    limit = found['limit'] = dense.flops / found['flops']
    found['efficiency'] = 1 / ratio['median'] / limit
    if name in refresh:
      found['refresh_seconds'] = refreshes[name]
      found['probe_seconds'] = probes[name]
      found['refresh_share'] = refresh[name] / every / median
    if f'{name}, twin' in arms:
      ratio = total[name] / total[f'{name}, twin']
      found['twin'] = bench_table.spread(ratio)
  if peak:
    result['dense']['peak_memory'] = peak
  return result


def _of_arm(arm, seconds, mesh):
  """What an arm knows of itself, and how well it uses the devices."""
  if isinstance(arm, bench_torch.TorchArm):
    of, found = arm, {}
    if arm.peak_memory is not None:
      found['peak_memory'] = arm.peak_memory
  else:
    of, found = arm.compiled, {'memory': arm.memory}
  return {
    'flops': of.flops,
    'compile_seconds': of.compile_seconds,
    **found,
    **_shares(of.flops / seconds, mesh.devices.flat[0], mesh.size),
  }


def _shares(speed: float, device: jax.Device, count: int) -> dict[str, float]:
  """Executed FLOPs a second over what devices can do, where that is known."""
  kind, shares = device.device_kind, {}
  peak = flops.peak_flops(kind)
  if peak:
    shares['mfu'] = speed / peak / count
  if kind in bench_machine.MEASURED:
    shares['of_measured'] = speed / bench_machine.MEASURED[kind] / count
  return shares
