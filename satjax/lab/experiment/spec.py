"""What an experiment file says: a scenario, the arms of a sweep, claims.

    TITLE = 'Omission rate'
    CLAIMS = (spec.Claim(...), ...)
    PAPER = None  # or {'columns': [...], 'rows': {arm: [...]}}

    def scenario(scale): ...  # -> Scenario
    def sweep(add, scenario): add('rate 0.5', {'sparsity.head_rate': 0.5, ...})
    def notes(arms): yield 'a sentence'  # if there is more to say of the arms
    ANSWERS = 'Fine-tuning'  # if the page of all results begins with its best

Nothing here needs JAX.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, Literal, NamedTuple

import ml_collections

from satjax import console, errors
from satjax.config import file as config_file
from satjax.data import prepared, sources
from satjax.interop import settings
from satjax.lab.experiment import checks

SCALES = ('smoke', 'cpu', 'llm', 'gpu', 'paper')
_ASKS = (
  'an experiment has TITLE, CLAIMS, PAPER, scenario(scale) and sweep(add,'
  ' scenario)'
)


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to train; its name stands in tables."""

  name: str
  overrides: Mapping[str, Any]  # of the scenario's config, by dotted key
  group: str = ''  # heading that it stands under
  # Coordinates for plots, at most two.
  label: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # What it has as much of as the reference, or a share of that.
  equal: Literal['steps', 'flops'] = 'steps'
  length: float = 1.0
  prune: float = 0.0  # share of heads and channels cut off the base for good
  early_stop: bool = False  # count the step of the lowest validation loss
  rate_factor: float = 1.0  # on all learning rates (adapters want larger)


@dataclasses.dataclass(frozen=True)
class Scenario:
  """What all arms of an experiment share."""

  name: str  # short, of folders
  # 'sat', whose reference is 'dense'; or 'growth', with 'scratch'.
  family: Literal['sat', 'growth']
  # Of the reference at its full length; what is reported is the third split
  # of its first source of `data.eval`.
  config: ml_collections.ConfigDict
  # Trains the model that every arm starts from; None: random weights.
  base: ml_collections.ConfigDict | None
  seeds: tuple[int, ...]  # of order, selections and random weights
  # Peaks that every arm is tried with, on the first seed.
  learning_rates: tuple[float, ...]
  # Shares of the reference's steps that it is also trained for, each time
  # with a full schedule of its own; 1 is among them.
  lengths: tuple[float, ...]
  baselines: tuple[Arm, ...] = ()  # arms that stand in every table
  # Of the other arms, those that all seeds are run of: so many, by validation
  # loss at the first seed; None: all of them.
  finalists: int | None = None
  # How often a search goes on, by a factor of 2, where the best is at an edge.
  widen: int = 0

  @property
  def reference(self) -> str:
    return {'sat': 'dense', 'growth': 'scratch'}[self.family]

  def named(self, length: float) -> str:
    """The reference trained for a share of its steps."""
    name = self.reference
    return name if length == 1 else f'{name}, {length:.0%} of the steps'

  @property
  def source(self) -> str:
    return self.config.data.eval[0]

  @property
  def tokens_per_step(self) -> int:
    return self.config.train.batch_size * self.config.data.seq_len


class Expect(NamedTuple):
  """That an arm ends 'below' another, 'not above' it, or is 'faster' than it.

  Of losses, what counts as a difference `compare.difference` says.
  """

  arm: str
  relation: Literal['below', 'not above', 'faster']
  other: str  # an arm; or steps, time, flops: the reference at as much of that
  by: float = 1.0  # how many times faster, at least


class Claim(NamedTuple):
  """A claim of a paper, or of ours, and what it takes to hold."""

  text: str
  source: str  # who says so, and where
  paper: str  # the figure published; '' if there is none
  expects: tuple[Expect, ...]  # holds if all are true, partly if some are


class Experiment(NamedTuple):
  """An experiment file at a scale."""

  name: str
  title: str
  doc: str
  scale: str
  scenario: Scenario
  arms: Mapping[str, Arm]
  claims: tuple[Claim, ...]
  paper: Mapping[str, Any] | None
  notes: Callable[[Mapping[str, Any]], Iterable[str]]
  answers: str = ''

  @property
  def frontier(self) -> tuple[str, ...]:
    """The arms of the reference, the shortest first."""
    return tuple(map(self.scenario.named, sorted(self.scenario.lengths)))


def load(
  path: str, scale: str, overrides: Sequence[str] = (), data: str = ''
) -> Experiment:
  """Reads an experiment file, which is executed, at one of `SCALES`.

  `overrides` are `--config.group.key=value`, of the scenario's configuration;
  `data` is a source that its runs train on and are judged by, not its own.

  Raises:
    ConfigError: there is no such file, it fails, or lacks something.
    DataError: no file is what `data` names.
  """
  file = pathlib.Path(path)
  if not file.is_file() or file.suffix != '.py':
    raise errors.ConfigError(
      f'{path}: there is no such experiment; name a file such as'
      ' experiments/sat_rate.py'
    )
  if scale not in SCALES:
    raise errors.ConfigError(f'--scale={scale}; allowed: {" | ".join(SCALES)}')
  module = config_file.execute(file, _ASKS)
  arms: dict[str, Arm] = {}

  def put(arm: Arm) -> None:
    checks.of_arm(arm, scenario)
    if arm.name in arms:
      raise ValueError(f'two arms are called {arm.name!r}')
    arms[arm.name] = arm

  def add(name: str, overrides: Mapping[str, Any], **how: Any) -> None:
    put(Arm(name, dict(overrides), **how))

  with config_file.explained(file, _ASKS):
    scenario = _scenario(module.scenario(scale), scale, overrides, data)
    for length in sorted(scenario.lengths, reverse=True):
      name = scenario.named(length)
      add(name, {}, group=scenario.reference, length=length)
    module.sweep(add, scenario)
    for arm in scenario.baselines:
      put(arm)
    experiment = Experiment(
      name=file.stem,
      title=module.TITLE,
      doc=module.__doc__ or '',
      scale=scale,
      scenario=scenario,
      arms=arms,
      claims=tuple(module.CLAIMS),
      paper=module.PAPER,
      notes=getattr(module, 'notes', lambda arms: ()),
      answers=getattr(module, 'ANSWERS', ''),
    )
    checks.of_texts(experiment)
    _say_whose_own(experiment.arms.values(), overrides)
    return experiment


def _say_whose_own(arms: Iterable[Arm], overrides: Sequence[str]) -> None:
  """A setting that was asked for does not reach arms with one of their own."""
  for argument in overrides:
    key = argument.partition('=')[0].removeprefix('--config.')
    if own := [arm.name for arm in arms if key in arm.overrides]:
      console.say(f'{argument} is not for {", ".join(own)}: they set it')


# Of a base too, as its shape is.
_OF_MODEL = ('data.tokenizer', 'sparsity.channel_multiple')


def _scenario(
  scenario: Scenario, scale: str, overrides: Sequence[str], data: str
) -> Scenario:
  """With the text, the settings and the model that somebody asked for."""
  checks.of_scenario(scenario)
  if data:
    if data.startswith('tokens:'):
      if not prepared.sources_of(data.removeprefix('tokens:')):
        raise errors.DataError(f'{data!r} is no folder of `satjax prepare`')
    else:
      sources.find(data)
    values = scenario.config.data
    values.train, values.eval = (data,), (data, *values.eval[1:])
  if data and any(x.startswith('--config.data.train=') for x in overrides):
    raise errors.ConfigError('--data says what runs train on; leave one out')
  of_model = []
  for argument in overrides:
    key = argument.partition('=')[0].removeprefix('--config.')
    if key in checks.OWN:
      raise errors.ConfigError(
        f'{argument}: an experiment has learning rates and seeds of its own;'
        f' change {checks.OWN[key]}'
      )
    if key.startswith('model.') or key in _OF_MODEL:
      of_model.append(argument)
  config = config_file.override(scenario.config, overrides)
  if not config.data.eval:
    raise errors.ConfigError(
      'config.data.eval is (): runs are judged by its first source; name one'
    )
  # Each is judged by itself, whatever its share.
  names = (x if isinstance(x, str) else x[0] for x in config.data.eval)
  config.data.eval = tuple(names)
  if config.model.init_from and scenario.base is not None:
    raise errors.ConfigError(
      f'config.model.init_from={config.model.init_from}: scale {scale} trains'
      ' the model that its runs begin with; leave it out'
    )
  if config.model.init_from:
    resolved = settings.resolve(config.to_dict())
    config.model.update(dataclasses.asdict(resolved.model))
    config.data.tokenizer = resolved.data.tokenizer
  base = scenario.base  # of the same shape
  if base is not None:
    base = config_file.override(base, of_model)
  scenario = dataclasses.replace(scenario, config=config, base=base)
  checks.of_reference(scenario)
  return scenario
