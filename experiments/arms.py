"""Arms and claims that several experiments share: SAT's recipes, and growth."""

from collections.abc import Iterable, Mapping
import itertools

from configs import llama2_7b_cpt, llama2_13b_cpt
from configs.methods import METHODS
from experiments.scenarios import EXACT, FACTOR, SAT, SHALLOW, rates
from satjax.lab.experiment import spec

_FORWARDS = {'SAT': 'skip', 'SAT, mean': 'mean', 'SAT, exact': 'exact'}


def headline(paper: str, times: float) -> tuple[spec.Claim, ...]:
  """The claims of SAT's abstract, and those of a sceptic.

  Args:
    paper: the figure published.
    times: how many times as fast as dense training it amounts to.
  """
  return (
    spec.Claim(
      'SAT is comparable to dense training for as many steps',
      'SAT, abstract',
      'comparable or better',
      (spec.Expect('SAT', 'not above', 'steps'),),
    ),
    worthwhile(_FORWARDS),
    spec.Claim(
      'a whole run with the ladder is as much faster as the paper says',
      'SAT, abstract; at which rate is not public, ours is 1/2',
      paper,
      (spec.Expect('SAT', 'faster', 'dense', times),),
    ),
    spec.Claim(
      'SAT ends below its baselines: a random choice, a pruned model, LoRA',
      'ours',
      '',
      (
        spec.Expect('SAT', 'below', 'uniform'),
        spec.Expect('SAT', 'below', 'static pruned twin'),
        spec.Expect('SAT', 'below', 'LoRA'),
      ),
    ),
  )


def add_headline(add, scenario: spec.Scenario) -> None:
  """SAT with each forward pass; at scale paper larger models, too."""
  for name, forward in _FORWARDS.items():
    add(name, SAT | {'sparsity.omitted_forward': forward})
  _add_paper_sizes(add, scenario)


def _add_paper_sizes(add, scenario: spec.Scenario) -> None:
  """At scale paper: Llama-2-7B and 13B, dense and with SAT.

  For `--plan`: where weights are named, all arms begin with those.
  """
  weights = scenario.config.model.init_from
  if weights or not scenario.name.endswith('-paper'):
    return
  for size, module in (('7B', llama2_7b_cpt), ('13B', llama2_13b_cpt)):
    model = module.get_config().model
    sizes = {f'model.{key}': model[key] for key in _SIZES}
    add(f'dense, {size}', sizes, group=size)
    add(f'SAT, {size}', sizes | SAT, group=size)


_SIZES = (
  'num_layers',
  'embed_dim',
  'num_heads',
  'num_kv_heads',
  'head_dim',
  'mlp_dim',
  'remat',
)


# What single choices did best with in continual pre-training, put together.
_STEADY = {
  'sparsity.importance': 'magnitude',
  'sparsity.selection': 'top_k',
  'sparsity.refresh_every': 64,
  'sparsity.rungs': 1,
}
# By name: rates, forward pass, share of the run at these rates.
_RECIPES = {
  'skip, 0.125, drop': (rates(0.125), 'skip', 2 / 3),
  'skip, 0.25, drop': (rates(0.25), 'skip', 2 / 3),
  'skip, 0.5, drop': (rates(0.5), 'skip', 2 / 3),
  'skip, 0.5, drop at 1/3': (rates(0.5), 'skip', 1 / 3),
  'skip, channels 0.5, drop at 1/3': (rates(0.0, 0.5), 'skip', 1 / 3),
  'exact, 0.5': (rates(0.5), 'exact', 1.0),
  'exact, 0.75': (rates(0.75), 'exact', 1.0),
  'exact, 0.75, drop': (rates(0.75), 'exact', 2 / 3),
  'exact, channels 0.5': (rates(0.0, 0.5), 'exact', 1.0),
}
RECIPES = {
  name: where | _STEADY | {'sparsity.omitted_forward': how, 'sparsity.split': x}
  for name, (where, how, x) in _RECIPES.items()
}
# Those that came nearest to dense training for the same time.
NEAREST = ('skip, 0.125, drop', 'skip, 0.5, drop at 1/3', 'exact, 0.5')


def worthwhile(names: Iterable[str]) -> spec.Claim:
  """That one of these arms beats dense training for the same time."""
  return spec.Claim(
    'SAT ends below dense training for the same measured time',
    'ours: what would make SAT worth its while',
    '',
    tuple(spec.Expect(name, 'below', 'time') for name in names),
  )


def setting() -> tuple[spec.Claim, ...]:
  """That a setting pays: against dense training, and what is simpler."""
  simpler = ('LoRA', 'static pruned twin')
  return (
    worthwhile(NEAREST),
    spec.Claim(
      'for as many steps SAT ends below LoRA and below a pruned model',
      'ours: which are simpler',
      '',
      tuple(
        spec.Expect(name, 'below', other)
        for other in simpler
        for name in NEAREST
      ),
    ),
  )


_STOPPED = 'dense, stopped'


def small_data(names: Iterable[str]) -> tuple[spec.Claim, ...]:
  """What would make SAT worth its while where dense training over-fits."""
  return (
    worthwhile(names),
    spec.Claim(
      'SAT ends below dense that is stopped early',
      'ours',
      '',
      tuple(spec.Expect(name, 'below', _STOPPED) for name in names),
    ),
  )


def add_methods(add, methods: Mapping[str, Mapping[str, object]]) -> None:
  """Dense training that is stopped early, and arms of SAT by name."""
  add(_STOPPED, {}, group='baselines', early_stop=True)
  for name, changes in methods.items():
    add(name, changes, group='SAT')


# By the metrics that configurations have by default; the second is what a
# configuration does that names rates alone.
_OURS = ('sat, by auto', 'sat_exact, by auto')


def add_presets(add, scenario: spec.Scenario) -> None:
  """Every method of `configs/methods.py` but those that all tables have.

  And SAT by the metrics of the defaults, where the preset has one of the paper.
  """
  for name in METHODS:
    if name not in ('dense', 'lora'):
      add(name, **_preset(scenario, name), group='methods')
  auto = {'sparsity.importance': 'auto'}
  add(_OURS[0], rates(0.5) | auto, group='methods')
  exact = _preset(scenario, 'sat_exact')
  exact['overrides'] |= auto
  add(_OURS[1], **exact, group='methods')


def add_longer(
  add,
  scenario: spec.Scenario,
  names: Iterable[str],
  lengths: Iterable[float],
) -> None:
  """Some methods, each for some multiples of the steps."""
  for name, length in itertools.product(names, lengths):
    how = _preset(scenario, name) | {'group': name, 'length': length}
    add(longer(name, length), label={'length': length}, **how)


def longer(name: str, length: float) -> str:
  """What an arm of `add_longer` is called."""
  return f'{name}, {length:g} x'


_TURNS = 8  # blocks of 15 % of the layers


def _preset(scenario, name) -> dict[str, object]:
  """What makes an arm of a method: settings, and the rates that suit them."""
  [lora] = (arm for arm in scenario.baselines if arm.name == 'LoRA')
  method = METHODS[name]
  groups = {'sparsity': method.sparsity, 'lora': method.lora}
  changes = {
    f'{group}.{key}': value
    for group, values in groups.items()
    for key, value in values.items()
  }
  # In a run of any length each block of a cycle has its turn.
  often = max(1, scenario.config.train.num_steps // _TURNS)
  if changes.get('sparsity.importance') == 'cyclic':
    changes['sparsity.refresh_every'] = often
  factor = lora.rate_factor if method.lora else 1.0
  if scenario.name.endswith('-llm'):
    factor = _FACTORS.get(name, factor)
  return {'overrides': changes, 'rate_factor': factor}


# Where the search on a real model begins, over the rates of dense training:
# the best of an earlier search is in the middle. Others begin as dense does.
_FACTORS = {
  **{'half': 2, 'sat_exact': 2, 'dropbp': 2, 'lors_layers': 2},
  **{'lisa': 4, 'badam': 4, 'sat': 1 / 4, 'lora_sat': 1},
}


def presets() -> tuple[spec.Claim, ...]:
  """That a method pays, and what its authors say of its quality."""
  names = [name for name in METHODS if name not in ('dense', 'lora')]
  worth = [*names, *_OURS]
  return (
    spec.Claim(
      'a method ends below dense training for the same measured time',
      'ours: what would make it worth its while',
      '',
      tuple(spec.Expect(name, 'below', 'time') for name in worth),
    ),
    *(
      spec.Claim(
        f'{name}: no worse than dense training for as many steps',
        METHODS[name].source,
        METHODS[name].claim,
        (spec.Expect(name, 'not above', 'steps'),),
      )
      for name in names
      if METHODS[name].claim
    ),
  )


def add_nearest(add, scenario: spec.Scenario) -> None:
  """Arms of the recipes `NEAREST`."""
  del scenario
  for name in NEAREST:
    add(name, RECIPES[name])


_HOP = 0.1  # of the tokens from scratch: when growth happens, as in the paper


def grow(
  scenario: spec.Scenario,
  *hops: tuple[float, str, object],
  **base_sizes: int,
) -> dict[str, object]:
  """Overrides of a run that grows.

  Args:
    scenario: `growth`.
    *hops: (when, as a share of the tokens from scratch; operator; target).
    **base_sizes: of the model before the first hop, keys of `config.model`.
  """
  tokens = scenario.tokens_per_step
  steps = scenario.config.train.num_steps
  return {f'model.{key}': size for key, size in base_sizes.items()} | {
    'growth.hops': tuple(
      (round(share * steps) * tokens, operator, target)
      for share, operator, target in hops
    )
  }


def deepen(
  scenario: spec.Scenario,
  operator: str = 'stack',
  *,
  factor: int = FACTOR,
  share: float = _HOP,
  **options: object,
) -> dict[str, object]:
  """Growth in depth, from a base that is `factor` times as shallow: G_stack."""
  target = {'factor': factor, **options} if options else factor
  layers = scenario.config.model.num_layers // factor
  return grow(scenario, (share, operator, target), num_layers=layers)


def widths(scenario: spec.Scenario, factor: float = 1) -> dict[str, int]:
  """Everything that growth in width changes, `factor` times as large."""
  names = ('embed_dim', 'num_heads', 'num_kv_heads', 'mlp_dim')
  model = scenario.config.model
  return {name: round(factor * model[name]) for name in names}


def widen(
  scenario: spec.Scenario, operator: str = 'direct', **options: object
) -> dict[str, object]:
  """Growth in width, from half of it."""
  hop = (_HOP, operator, widths(scenario) | options)
  return grow(scenario, hop, **widths(scenario, 1 / 2))


def add_grown(add, name: str, overrides: dict[str, object], **how) -> None:
  """An arm with the FLOPs of the run from scratch, its base included."""
  add(name, overrides, equal='flops', **how)


SHARES = (0.1, 0.3, 0.5, 0.8)  # of the tokens from scratch: when growth happens
_LATE = 'from 1, at 80% of as many steps'


def add_when(add, scenario: spec.Scenario) -> None:
  """One hop, at every time, from 1, 2 and 4 layers, with equal FLOPs.

  Under WSD also as it was published, with equal steps: as its decay begins.
  """
  most = scenario.config.model.num_layers
  for layers in (n for n in (1, 2, 4) if n < most):
    for share in SHARES:
      add_grown(
        add,
        _hop_name(layers, share),
        deepen(scenario, factor=most // layers, share=share),
        label={'layers before': layers, 'share of the tokens': share},
      )
  if scenario.config.optimizer.schedule == 'wsd':
    add(_LATE, deepen(scenario, factor=most, share=0.8))


def _hop_name(layers: int, share: float) -> str:
  return f'from {layers}, at {share:.0%}'


def when(schedule: str) -> tuple[spec.Claim, ...]:
  """What three papers advise, which contradict each other."""
  late = (
    spec.Claim(
      'one growth at 80 % from one layer reaches what scratch does in as many'
      ' steps',
      'arXiv 2511.04981, under WSD',
      'within 0.5 % of the loss',
      (spec.Expect(_LATE, 'not above', 'steps'),),
    ),
    spec.Claim(
      'growing late from one layer ends below growing early from a quarter',
      'arXiv 2511.04981 against Du et al., 2024',
      '',
      (spec.Expect(_hop_name(1, 0.8), 'below', _hop_name(2, 0.1)),),
    ),
  )
  return (
    spec.Claim(
      'stacking early by four beats scratch at equal FLOPs',
      'Du et al., 2024, figure 5',
      '1.41 to 1.55 times as fast',
      (spec.Expect(_hop_name(2, 0.1), 'below', 'flops'),),
    ),
    spec.Claim(
      'growing by two beats growing by four, and by eight',
      'arXiv 2605.13405: at most twice as deep',
      '',
      (
        spec.Expect(_hop_name(4, 0.1), 'below', _hop_name(2, 0.1)),
        spec.Expect(_hop_name(4, 0.1), 'below', _hop_name(1, 0.1)),
      ),
    ),
    *(late if schedule == 'wsd' else ()),
    spec.Claim(
      'growth beats the shallow model, trained on for the same FLOPs',
      'ours: else nobody needs the deep model',
      '',
      (spec.Expect(_hop_name(2, 0.1), 'below', SHALLOW),),
    ),
  )


_LAYERS = {'sparsity.importance': {'layers': 'uniform'}}
_TIMES = {
  'constant': {'sparsity.split': 1.0, 'sparsity.rungs': 1},
  'falling': {'sparsity.split': 1 / 3},
  'rising': {'sparsity.split': 1 / 3, 'sparsity.shape': 'reversed'},
}


def add_dropped(add, scenario: spec.Scenario) -> None:
  """Layers dropped over a run in three ways, alike or by depth; and SAT."""
  del scenario
  for when, changes in _TIMES.items():
    for where, rate, scale in (('alike', 0.25, ()), ('by depth', 0.5, 'depth')):
      add(
        f'{when}, {where}',
        changes
        | _LAYERS
        | {'sparsity.layer_rate': rate, 'sparsity.layer_scale': scale},
        group='layers dropped',
      )
  exact = {'sparsity.layer_rate': 0.5, **_TIMES['constant'], **_LAYERS, **EXACT}
  add('layers, exact', exact, group='layers dropped')
  add('SAT', SAT, group='heads and channels')
  add('SAT, exact', SAT | EXACT, group='heads and channels')


def dropped() -> tuple[spec.Claim, ...]:
  """What is said of training from scratch with layers left out."""
  names = [f'{t}, {w}' for t in _TIMES for w in ('alike', 'by depth')]
  return (
    spec.Claim(
      'dropping layers by a schedule beats dense training of as many steps',
      "Don't Drop Dropout, ICML 2026",
      'a lower loss with 20 % fewer FLOPs',
      tuple(spec.Expect(name, 'below', 'steps') for name in names),
    ),
    spec.Claim(
      'it ends below dense training of the same FLOPs',
      'ours',
      '',
      tuple(spec.Expect(name, 'below', 'flops') for name in names),
    ),
    worthwhile([*names, 'layers, exact', 'SAT', 'SAT, exact']),
    spec.Claim(
      'a rate that falls beats one that rises',
      'ours: LORS against progressive layer dropping',
      '',
      (spec.Expect('falling, alike', 'below', 'rising, alike'),),
    ),
    spec.Claim(
      'rates by depth beat equal ones',
      'stochastic depth; progressive layer dropping, arXiv 2010.13369',
      '',
      (spec.Expect('constant, by depth', 'below', 'constant, alike'),),
    ),
  )
