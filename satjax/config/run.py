"""The only schema: frozen dataclasses that say what a configuration may hold.

Values live in `configs/`; types and ranges live in `groups` and
`data`, and here the rules that need more than one group. The field
declarations are the reference of allowed values, and every error quotes them.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import math
from typing import Any, Literal, Self

import ml_collections

from satjax import errors
from satjax.config import defaults, schema, stages
from satjax.config.groups import AXES, Groups, ModelConfig
from satjax.sparsity import counts


@dataclasses.dataclass(frozen=True)
class Config(Groups):
  """One run, whole. Hashable, so that it may be a static jit argument."""

  @classmethod
  def from_dict(
    cls,
    values: Mapping[str, Any],
    *,
    rules: Literal['all', 'recorded', 'types'] = 'all',
  ) -> Self:
    """Checks a nested mapping and builds the configuration from it.

    What it holds are numbers: 'auto' and shares of the run are resolved.

    Args:
      values: what `get_config()` of a config file returns (a ConfigDict), or
        a run's `config.json`; every key must be there, and no other.
      rules: 'recorded', of a run that began when more was allowed; 'types':
        each value by itself, since the model may be another one.

    Raises:
      ConfigError: names every wrong key, its value and what is allowed.
    """
    if isinstance(values, ml_collections.ConfigDict):
      values = values.to_dict()
    if not isinstance(values, Mapping):
      raise errors.ConfigError(
        f'a configuration is a mapping of groups, not {values!r}'
      )
    groups = {f.name: f.type for f in dataclasses.fields(cls)}
    problems = schema.wrong_keys('config', values, groups)
    built = {}
    for name, group in groups.items():
      if name in values:
        built[name] = schema.build(
          group,
          f'config.{name}',
          values[name],
          problems,
          alone=rules == 'types',
        )
    if not problems:
      config = defaults.resolve(cls(**built))
      if rules != 'types':
        problems = config.problems(recorded=rules == 'recorded')
    if problems:
      raise errors.ConfigError('\n'.join(problems))
    return config

  def to_dict(self) -> dict[str, Any]:
    """The nested plain dictionary that `from_dict` accepts."""
    return dataclasses.asdict(self)

  def changes(self, other: Self) -> dict[str, tuple[Any, Any]]:
    """What differs in another one: `group.key` to the two values."""
    before, after = self.to_dict(), other.to_dict()
    return {
      f'{group}.{key}': (before[group][key], value)
      for group, values in after.items()
      for key, value in values.items()
      if value != before[group][key]
    }

  def problems(self, recorded: bool = False) -> list[str]:
    """Rules that need more than one group; see `from_dict`."""
    problems = [*self._schedule_problems(), *stages.problems(self)]
    problems += self._keep_problems()
    if self.sparsity.is_on:
      problems += self._layer_problems()
      problems += self._setup_problems()
      for model in self._models():
        problems += self._neuron_problems(model, recorded)
    return list(dict.fromkeys(problems))

  def _schedule_problems(self) -> Iterator[str]:
    opt, num_steps = self.optimizer, self.train.num_steps
    if opt.end_lr > opt.peak_lr:
      yield (
        f'config.optimizer: end_lr {opt.end_lr} is above peak_lr {opt.peak_lr}'
      )
    if opt.warmup_steps + opt.decay_steps > num_steps:
      yield (
        f'config.optimizer: warmup_steps {opt.warmup_steps} + decay_steps'
        f' {opt.decay_steps} exceed train.num_steps {num_steps}'
      )
    if opt.decay_steps and opt.schedule != 'wsd':
      yield (
        f'config.optimizer.decay_steps {opt.decay_steps} has a meaning only'
        f" with schedule 'wsd', not {opt.schedule!r}; set it to 0"
      )
    if opt.schedule == 'wsd' and not opt.decay_steps:
      yield (
        "config.optimizer.decay_steps 0: schedule 'wsd' ends with a decay; give"
        " its steps, a share of the run such as 0.2, or 'auto'; or use schedule"
        " 'constant', which has none"
      )

  def _keep_problems(self) -> Iterator[str]:
    train = self.train
    both = math.lcm(train.eval_every, train.checkpoint_every)
    if train.keep_best and not self.data.eval:
      yield (
        f'config.train.keep_best {train.keep_best} compares held-out losses,'
        ' and data.eval is (); name sources there, or set it to 0'
      )
    elif train.keep_best and not 0 < both < train.num_steps:
      yield (
        f'config.train.keep_best {train.keep_best} compares checkpoints that'
        ' are saved at a step with an evaluation: checkpoint_every'
        f' {train.checkpoint_every} and eval_every {train.eval_every} do not'
        f' meet before num_steps {train.num_steps}; use one number below it for'
        ' both'
      )

  def _models(self) -> list[ModelConfig]:
    """Of every stage; the first one alone, if the others are not known."""
    with contextlib.suppress(errors.ConfigError):
      return list(dict.fromkeys(s.model for s in stages.stages(self)))
    return [self.model]

  def _layer_problems(self) -> Iterator[str]:
    sparsity, layers = self.sparsity, self.model.num_layers
    sizes = {len(sparsity.scale(axis, layers)) for axis in AXES} - {layers}
    for size in sorted(sizes):
      yield (
        f'config.sparsity.layer_scale has {size} factors for'
        f' model.num_layers {layers}; give one for each layer, or ()'
      )
    if sizes:  # of which nothing else can be said
      return
    if sparsity.names_layers and self.growth.hops:
      yield (
        'config.sparsity.layer_scale names layers, and growth.hops changes how'
        " many there are; use layer_scale 'depth' or dense_layers, or no hops"
      )
    stay = sum(sparsity.dense_layers)
    if stay >= layers:
      yield (
        f'config.sparsity.dense_layers {sparsity.dense_layers} leaves none of'
        f' {layers} layers to omit anything from; keep fewer dense'
      )
    for model in self._models() if stay < layers else []:
      if sparsity.layer_rate and (said := self._layers_not_left_out(model)):
        yield f'config.sparsity.layer_rate {said}'

  def _layers_not_left_out(self, model: ModelConfig) -> str:
    """Why no such share of the layers is left out; '' if it is."""
    sparsity, total = self.sparsity, model.num_layers
    scale = sparsity.scale('layers', total)
    wanted = sparsity.layer_rate * sum(scale)
    most = min(sum(x > 0 for x in scale), total - 1)
    if round(wanted, 9) >= 0.5 and wanted < most + 0.5:
      return ''
    what, near = f'{wanted:.3g} of {total}', most
    if wanted < 0.5:
      what, near = 'nothing', min(most, 1)
    allowed = f'1 to {most} may be' if most else 'none may be'
    remedy = f'use {min(near / (sum(scale) or 1), 0.999):.6g}'
    if most and sum(scale) < 0.501:  # at no rate below 1
      remedy = f'the factors of layer_scale sum to {sum(scale):.3g}; raise them'
    return (
      f'{sparsity.layer_rate} leaves out {what}: of {total} layers {allowed},'
      f' by dense_layers and layer_scale; {remedy}'
    )

  def _neuron_problems(self, model: ModelConfig, recorded) -> Iterator[str]:
    """What does not divide into whole tiles, groups and shards."""
    sparsity, shards = self.sparsity, self.sparsity.shards
    heads, groups, total = model.num_heads, model.num_kv_heads, model.mlp_dim
    if heads % counts.head_step(heads, groups, sparsity.granularity, shards):
      yield (
        f'config.sparsity.shards {shards} cannot share {heads} heads in'
        f' {groups} key/value groups out evenly; use a divisor of both'
      )
    step = self.channel_step
    if total % shards or (sparsity.channel_rate and step > total):
      yield (
        f'config.sparsity.shards {shards} cannot share {total} channels out'
        f' evenly in multiples of {sparsity.channel_multiple}; use a divisor'
      )
    layers = model.num_layers
    is_cut = sum(sparsity.dense_layers) < layers  # else it is said elsewhere
    for key, rate, total, step, what in self._units(model):
      unit = total, step, what
      scales = sparsity.scale('heads' if what == 'heads' else 'mlp', layers)
      kept = {counts.kept_count(total, rate * x, step) for x in scales}
      if said := counts.not_realised(rate, *unit, all_but_one=recorded):
        yield f'config.sparsity.{key} {said}'
      elif not recorded and is_cut and kept == {total}:
        yield (
          f'config.sparsity.{key} {rate} leaves out nothing, by dense_layers'
          f' and layer_scale: of {total} {what} a layer {step} or more are left'
          ' out; raise it, or the factors'
        )

  def _units(
    self, model: ModelConfig
  ) -> list[tuple[str, float, int, int, str]]:
    """(key, rate, how many, in multiples of what, name) of what is left out."""
    sparsity, heads = self.sparsity, model.num_heads
    groups, how = model.num_kv_heads, (sparsity.granularity, sparsity.shards)
    step = counts.head_step(heads, groups, *how)
    found = [
      ('head_rate', sparsity.head_rate, heads, step, 'heads'),
      (
        *('channel_rate', sparsity.channel_rate),
        *(model.mlp_dim, self.channel_step, 'channels'),
      ),
    ]
    return [unit for unit in found if unit[1] and unit[3] <= unit[2]]

  def remarks(self) -> list[str]:
    """What is not done quite as it is written, and what has no effect."""
    said = []
    opt = self.optimizer
    if opt.schedule == 'constant' and opt.end_lr != opt.peak_lr:
      said.append(
        f'config.optimizer.end_lr {opt.end_lr} has no effect: schedule'
        " 'constant' ends with peak_lr"
      )
    sparsity, steps = self.sparsity, self.train.num_steps
    if sparsity.is_on and not defaults.most_rungs(self):
      said.append(
        f'config.sparsity.split {sparsity.split:.6g} leaves no step of {steps}'
        ' for the ladder: there is none'
      )
    cycles = 'cyclic' in (
      sparsity.metric(x) for x, r in sparsity.rates.items() if r
    )
    if cycles and sparsity.refresh_every >= steps:
      said.append(
        f'config.sparsity.refresh_every {sparsity.refresh_every} leaves a cycle'
        f" of importance 'cyclic' at its first block for all of {steps} steps"
      )
    for model in self._models():
      for key, rate, total, step, what in self._units(model):
        found = 1 - counts.kept_count(total, rate, step) / total
        if abs(found - rate) > 1e-3:
          said.append(
            f'config.sparsity.{key} {rate} becomes {found:.6g}: {total} {what}'
            f' are left out in multiples of {step}'
          )
      if sparsity.layer_rate:
        rate, total = sparsity.layer_rate, model.num_layers
        scale = sparsity.scale('layers', total)
        (found,) = counts.omitted_layers(rate, scale, [total])
        # By factors, as a probe has them.
        is_meant = abs(found - rate * sum(scale)) < 0.03
        if not is_meant and abs(found / total - rate) > 1e-3:
          by = ', by dense_layers and layer_scale'
          is_scaled = sum(scale) < total
          said.append(
            f'config.sparsity.layer_rate {rate} becomes {found} of {total}'
            f' layers{by * is_scaled}'
          )
    return list(dict.fromkeys(said))

  @property
  def channel_step(self) -> int:
    """Kept channels come in multiples of this."""
    return math.lcm(self.sparsity.channel_multiple, self.sparsity.shards)

  def _setup_problems(self) -> Iterator[str]:
    sparsity, name = self.sparsity, self.optimizer.name
    shards, tensor = sparsity.shards, self.mesh.tensor
    is_cut = sparsity.head_rate or sparsity.channel_rate
    if sparsity.execution == 'compact' and is_cut and shards % tensor:
      yield (
        f'config.sparsity.shards {shards} is not a multiple of'
        f' config.mesh.tensor {tensor}, so that rows would move between devices'
        f' at every refresh; use shards={math.lcm(shards, tensor)}'
      )
    if name == 'adafactor':
      yield (
        "config.optimizer.name 'adafactor' factors its moments across neurons,"
        ' so omitted neurons cannot rest; with sparsity use adamw, lion, muon'
        ' or sgd, or set all omission rates to 0'
      )
    replays = sparsity.omitted == 'decayed' and sparsity.execution == 'compact'
    if name == 'muon' and replays:
      yield (
        "config.optimizer.name 'muon' mixes the neurons of a matrix, so the"
        ' updates of omitted ones cannot be replayed; use sparsity.omitted'
        " 'frozen', or execution 'masked'"
      )
    if sparsity.bias_correction == 'per_neuron' and name != 'adamw':
      yield (
        "config.sparsity.bias_correction 'per_neuron' counts steps for"
        f" optimizer 'adamw', not {name!r}; use 'global'"
      )


def field_of(group: str, key: str) -> dataclasses.Field:
  """The declaration of `config.GROUP.KEY`, a key that is there."""
  kinds = {field.name: field.type for field in dataclasses.fields(Config)}
  fields = {field.name: field for field in dataclasses.fields(kinds[group])}
  return fields[key]
