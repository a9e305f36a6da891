"""For a run that leaves out what it cannot do without: what a probe would."""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax

from satjax import errors, files, flops
from satjax.config import allocation
from satjax.config.run import Config
from satjax.lab.probe import probe
from satjax.lab.probe.allocation import Costs
from satjax.lab.probe.damage import Prober
from satjax.train import phases
from satjax.train.phases import Phase
from satjax.tree import PyTree

NAME = 'allocation.json'
_ROWS, _TOKENS = 4, 128  # at most, of a batch


def better(
  config: Config,
  phase: Phase,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  workdir: pathlib.Path,
) -> str:
  """What to do instead, in words; `allocation.json` in the workdir has it.

  Where a run is on one device, rates by layer are found that save as much, by
  the losses of a few rows of `batch`; `params` are whole. Elsewhere a probe is
  named that does.
  """
  model, length = phase.stage.model, phase.stage.seq_len
  dense = flops.train_flops_per_token(model, length)
  saved = phases.phase_flops(config, phase) / config.tokens_per_step / dense
  saving = round(1 - saved, 3)
  ask = (
    f'satjax probe --workdir={workdir} --saving={saving:g} --seq_len={length}'
    f' --channel_multiple={config.channel_step} --out={NAME} looks for rates by'
    f' layer that cost less, and --allocation={NAME} takes them'
  )
  is_alone = len(params['embed'].sharding.device_set) == 1
  if not is_alone or phase.stage.mode != 'all' or saving <= 0:
    return ask
  costs = Costs(model, length, config.channel_step)
  try:
    probe.check(costs, saving)
  except errors.ConfigError:
    return ask
  prober = Prober(model, params, *_rows(batch))
  keys, damage = probe.quick(prober, costs, saving)
  file = pathlib.Path(workdir) / NAME
  shape = {key: getattr(model, key) for key in allocation.SHAPE}
  content: dict[str, Any] = {'kind': allocation.KIND, 'model': shape}
  content |= {'text': {'seq_len': length}, 'allocation': {'saving': saving}}
  files.write_json(file, content | {'sparsity': keys})
  return (
    f'rates by layer that save as much cost {damage:.2f}: begin again, in'
    f' another workdir, with --allocation={file}'
  )


def _rows(batch):
  """To score units on, and to take losses of: others, if there are any."""
  few = max(1, min(_ROWS, len(batch['tokens']) // 2))
  short = {name: x[:, :_TOKENS] for name, x in batch.items()}
  look = {name: x[:few] for name, x in short.items()}
  return look, {name: x[-few:] for name, x in short.items()}
