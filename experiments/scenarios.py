"""Scenarios: models, texts, lengths, and a sceptic's baselines.

Every scenario is real text that is on every user's disk: the standard library
of Python, its documentation, its source and its docstrings. A model reads
documentation first (the base), and goes on with source code (`cpt`) or with
signatures answered by docstrings (`sft`, and `small_data` with few of them and
many epochs). `growth` starts from random weights.

A tenth of the documents is held out to choose learning rates and stopping
points, another tenth for the numbers that are reported.

Scale `llm` begins with a model that people use, SmolLM2-135M-Instruct of
`make real-model`, or of `--config.model.init_from=MODEL`; what it forgets is
seen on a second text.
"""

import dataclasses

import ml_collections

from configs import (
  base,
  smollm2_cpt,
  smollm2_sft,
  tinyllama_1b_cpt,
  tinyllama_1b_sft,
)
from satjax import errors, flops
from satjax.config.run import Config
from satjax.lab.experiment import spec

DOCS, CODE, ANSWERS = 'stdlib:docs', 'stdlib:code', 'stdlib:docstrings'
# SAT unless an arm says otherwise: `sparsity` of configs/base.py at this rate,
# by the metric and with the forward pass (`_skip`) that all results began with.
RATE = 0.5


def rates(heads: float, channels: float | None = None) -> dict[str, float]:
  """Omission rates of both, or of each."""
  channels = heads if channels is None else channels
  found = {'sparsity.head_rate': heads, 'sparsity.channel_rate': channels}
  return found | {'sparsity.importance': 'maxip'}


SAT = rates(RATE)
EXACT = {'sparsity.omitted_forward': 'exact'}  # dense forward, sparse backward
FACTOR = 4  # of growth in depth, unless an arm says otherwise
SHALLOW = 'shallow, never grown'


def _config(scale: str) -> ml_collections.ConfigDict:
  """The model of a scale, from random weights, on documentation."""
  config = base.get_config()
  model, data, train = config.model, config.data, config.train
  model.scan = False
  model.num_layers, model.head_dim = 4, 16
  model.embed_dim, model.mlp_dim = 128, 512
  _skip(config)
  data.seq_len, train.batch_size = 128, 8
  data.train = data.eval = (DOCS,)
  data.held_out = data.test = 0.1
  train.log_every, train.eval_batches = 5, 32
  train.eval_every = train.checkpoint_every = 0
  if scale == 'smoke':
    model.num_layers, model.embed_dim, model.mlp_dim = 2, 32, 64
    model.head_dim = 4
    config.sparsity.channel_multiple = 8
    config.sparsity.rungs = 2  # each is a program, and they take the time
    data.seq_len, train.batch_size = 32, 8
    train.eval_batches, train.log_every = 2, 1
  elif scale == 'gpu':
    model.num_layers, model.num_heads, model.num_kv_heads = 12, 16, 16
    model.embed_dim, model.head_dim, model.mlp_dim = 1024, 64, 4096
    model.dtype, model.scan = 'bfloat16', True
    config.sparsity.channel_multiple = 128
    data.seq_len, train.batch_size = 1024, 16
    train.loss_chunk = 4096
  return config


def _steps(scale: str, smoke: int, cpu: int, gpu: int) -> int:
  return {'smoke': smoke, 'cpu': cpu, 'gpu': gpu}[scale]


def _llm(name, config, steps) -> spec.Scenario:
  """A real model that trains on; one seed, and three of what does best."""
  config.data.held_out = config.data.test = 0.1
  config.train.num_steps = steps
  config.train.eval_every = config.train.checkpoint_every = 0
  config.train.eval_batches = 8
  _skip(config)
  _anneal(config, 2e-5)
  return spec.Scenario(
    name=f'{name}-llm',
    family='sat',
    config=config,
    base=None,
    seeds=(0, 1, 2),
    learning_rates=(4e-5, 8e-5, 1.6e-4),  # 2e-5 is too low for most arms
    lengths=_LENGTHS,
    baselines=_baselines(config, None, adapters=16.0, uniform=2.0),
    finalists=5,
    widen=5,
  )


def _baselines(
  config, start, adapters=3.0, uniform=1.0
) -> tuple[spec.Arm, ...]:
  """What a sceptic asks for besides dense: random choice, a cut base, LoRA.

  `adapters`, `uniform`: learning rates of LoRA, and of the random choice, over
  those of dense training.
  """
  chance = SAT | {'sparsity.importance': 'uniform'}
  targets = ('query', 'key', 'value', 'output', 'gate', 'up', 'down')
  lora = {'lora.rank': 16, 'lora.alpha': 32.0, 'lora.targets': targets}
  arms = [
    spec.Arm('uniform', chance, 'baselines', rate_factor=uniform),
    spec.Arm('LoRA', lora, 'baselines', rate_factor=adapters),
  ]
  if start and config.model.num_kv_heads == config.model.num_heads:
    arms.append(spec.Arm('static pruned twin', {}, 'baselines', prune=RATE))
  return tuple(arms)


def _shallow(config) -> tuple[spec.Arm, ...]:
  """The model that growth begins with, for all of the FLOPs."""
  layers = {'model.num_layers': config.model.num_layers // FACTOR}
  return (spec.Arm(SHALLOW, layers, 'baselines', equal='flops'),)


def _scenario(name, family, config, start, rates, lengths, scale):
  if scale == 'smoke':
    rates, lengths = rates[:1], (lengths[0], 1.0)
  return spec.Scenario(
    name=name,
    family=family,
    config=config,
    base=start,
    seeds=(0,) if scale == 'smoke' else (0, 1, 2),
    learning_rates=rates,
    lengths=lengths,
    baselines=(
      _baselines(config, start) if family == 'sat' else _shallow(config)
    ),
  )


def _start(scale: str, steps: float = 1) -> ml_collections.ConfigDict:
  """Pre-training on documentation, for so many times the usual steps."""
  config = _config(scale)
  config.train.num_steps = round(steps * _steps(scale, 16, 2000, 1500))
  _anneal(config, 6e-4 if scale == 'gpu' else 2e-3)
  return config


def _anneal(config, peak: float) -> None:
  """Warms up for a twentieth of the steps, and down to a tenth of the peak."""
  optimizer = config.optimizer
  optimizer.peak_lr, optimizer.end_lr = peak, peak / 10
  optimizer.warmup_steps = max(1, config.train.num_steps // 20)


def _skip(config) -> None:
  """What is left out is gone, as in the paper; an arm may say otherwise."""
  config.sparsity.omitted_forward = 'skip'


def _widen(model, width: float) -> None:
  for key in ('embed_dim', 'mlp_dim', 'head_dim'):
    model[key] = round(width * model[key])


def _refuse_changes(scale: str, *factors: float) -> None:
  if {*factors} != {1}:
    raise errors.ConfigError(
      f'scale {scale} has models of others and their training, and neither the'
      ' width nor the steps of them can be chosen; use --scale=gpu'
    )


def _refuse_llm(scale: str, why: str) -> None:
  if scale == 'llm':
    raise errors.ConfigError(
      f'scale llm begins with a trained model, and {why}; use --scale=cpu'
    )


def _continue(config, source, steps) -> None:
  config.data.train = config.data.eval = (source,)
  config.train.num_steps = steps
  _anneal(config, 1e-3)  # where the search is, an arm takes its own
  if steps < 40:
    config.sparsity.refresh_every = 2


def _fine_tuning_rates(scale: str) -> tuple[float, ...]:
  return (1e-4, 2e-4, 4e-4) if scale == 'gpu' else (1e-3, 2e-3, 4e-3)


_LENGTHS = (0.3, 0.45, 0.6, 0.8, 1.0)
_GROWTH_LENGTHS = (0.6, 1.0, 1.4)


def cpt(
  scale: str,
  name: str = 'cpt',
  *,
  width: float = 1,
  batch: int = 1,
  steps: float = 1,
  base_steps: float = 1,
  extra_rate: float | None = None,
) -> spec.Scenario:
  """Continual pre-training: from documentation to source code.

  Args:
    scale: of the experiment.
    name: of the scenario, where something is changed.
    width: how many times as wide the model is, its base included.
    batch: how many times as many rows a step of the run has.
    steps: how many times as many steps the run has; never at smoke.
    base_steps: how many times as many steps its base has.
    extra_rate: one more learning rate, as a multiple of the lowest; for where
      the usual ones have the best at an edge. Not at scale paper.

  Raises:
    ConfigError: another base at scales llm and paper, where it is trained.
  """
  if scale in ('llm', 'paper'):
    _refuse_changes(scale, width, base_steps)
  if scale == 'llm':
    config = smollm2_cpt.get_config(CODE)
    config.train.batch_size *= batch
    return _llm(name, config, round(40 * steps))
  if scale == 'paper':
    config = tinyllama_1b_cpt.get_config()
    config.train.batch_size *= batch
    config.train.num_steps = round(steps * config.train.num_steps)
    return _paper(name, config)
  config, start = _config(scale), _start(scale, base_steps)
  for model in (config.model, start.model):
    _widen(model, width)
  config.sparsity.channel_multiple = round(
    width * config.sparsity.channel_multiple
  )
  config.train.batch_size *= batch
  many = _steps(scale, 16, round(400 * steps), round(480 * steps))
  _continue(config, CODE, many)
  rates = _fine_tuning_rates(scale)
  if extra_rate:
    rates = tuple(sorted((*rates, extra_rate * rates[0])))
  return _scenario(name, 'sat', config, start, rates, _LENGTHS, scale)


def sft(scale: str) -> spec.Scenario:
  """Supervised fine-tuning: signatures answered by docstrings."""
  if scale == 'llm':
    return _llm('sft', smollm2_sft.get_config(ANSWERS), 40)
  if scale == 'paper':
    return _paper('sft', tinyllama_1b_sft.get_config())
  config, start = _config(scale), _start(scale)
  _continue(config, ANSWERS, _steps(scale, 16, 400, 500))
  config.data.packing = 'best_fit'
  rows = {'smoke': (256, 2), 'cpu': (512, 2)}  # most pairs fit
  if scale in rows:
    for each in (config, start):
      each.data.seq_len, each.train.batch_size = rows[scale]
  lowest = _fine_tuning_rates(scale)[0]
  rates = tuple(lowest * factor for factor in (1 / 8, 1 / 4, 1 / 2, 1, 2))
  return _scenario('sft', 'sat', config, start, rates, _LENGTHS, scale)


def with_room_for_layers(found: spec.Scenario) -> spec.Scenario:
  """A scenario whose model is deep enough to leave layers out of it."""
  if found.base is not None:
    for config in (found.config, found.base):
      config.model.num_layers = max(4, config.model.num_layers)
  return found


def small_data(scale: str) -> spec.Scenario:
  """Fine-tuning on 3 % of the pairs' text, about seven times each at cpu."""
  _refuse_llm(scale, 'little of this text takes seven epochs to over-fit')
  found = sft(scale)
  config = found.config
  if scale == 'paper':
    return dataclasses.replace(found, name='small-paper')
  config.train.num_steps = _steps(scale, 16, 440, 150)
  if scale == 'gpu':
    config.train.batch_size = 4
  _anneal(config, 1e-3)
  config.train.eval_every = config.train.num_steps // 8
  config.train.eval_batches = 20
  if scale != 'smoke':
    config.data.held_out, config.data.test = 0.475, 0.475
  lengths = (0.3, 0.55, 0.65, 1.0)
  rates = tuple(rate / 8 for rate in found.learning_rates[:4])
  return _scenario('small', 'sat', config, found.base, rates, lengths, scale)


def growth(
  scale: str, name: str = 'growth', *, width: float = 1, steps: float = 1
) -> spec.Scenario:
  """Pre-training from random weights, of the model that growth ends with.

  Args:
    scale: of the experiment.
    name: of the scenario, where something is changed.
    width: how many times as wide the model is.
    steps: how many times as many steps the run has; never at smoke.

  Raises:
    ConfigError: another width or length at scale paper.
  """
  _refuse_llm(scale, 'growth here begins with random weights')
  if scale == 'paper':
    _refuse_changes(scale, width, steps)
  config = _config(scale)
  model, train = config.model, config.train
  model.num_layers = 4 if scale == 'smoke' else 8
  if scale == 'cpu':
    model.embed_dim, model.mlp_dim, model.head_dim = 64, 256, 8
  elif scale == 'gpu':
    model.num_layers, model.embed_dim, model.mlp_dim = 16, 768, 3072
    model.num_heads = model.num_kv_heads = 12
  elif scale == 'paper':
    return _paper_growth(config)
  _widen(model, width)
  train.num_steps = _steps(scale, 20, round(800 * steps), round(400 * steps))
  _anneal(config, 2e-3)
  config.growth.opt_state, config.growth.learning_rate = 'reset', 'restart'
  middle = 6e-4 if scale == 'gpu' else 5e-3
  rates = (middle / 2, middle, 2 * middle)
  return _scenario(name, 'growth', config, None, rates, _GROWTH_LENGTHS, scale)


def scratch(
  scale: str, tokens: int, *, schedule: str = 'cosine', family: str = 'growth'
) -> spec.Scenario:
  """Pre-training from random weights, for so many tokens a parameter.

  Half as wide as `growth`, in half as many heads, so that many tokens a
  parameter are few in all. At smoke there are as few as ever.

  Args:
    scale: of the experiment; not llm, not paper.
    tokens: a parameter.
    schedule: 'cosine', whose rate begins anew after growth; or 'wsd', whose
      rate holds on until it decays over the last fifth.
    family: 'growth'; or 'sat', where arms leave units out.
  """
  # At smoke all are one: files share their runs.
  name = f'{family}-{tokens if scale != "smoke" else 0}-{schedule}'
  found = growth(scale, name, width=0.5)
  config, model = found.config, found.config.model
  # Narrower heads would make softmax most of a step.
  model.num_heads = model.num_kv_heads = model.num_heads // 2
  model.head_dim *= 2
  if scale != 'smoke':
    many = tokens * flops.num_params(Config.from_dict(config).model)
    config.train.num_steps = round(many / found.tokens_per_step)
    config.train.log_every = max(5, config.train.num_steps // 100)
  _anneal(config, 2e-3)
  if schedule == 'wsd':
    config.optimizer.schedule, config.optimizer.decay_steps = 'wsd', 0.2
    config.growth.opt_state, config.growth.learning_rate = 'grow', 'continue'
  found = dataclasses.replace(
    found,
    widen=0 if scale == 'smoke' else 3,
    finalists=3 if tokens > 20 else None,  # others have one seed
  )
  if family == 'growth':
    return found
  uniform = SAT | {'sparsity.importance': 'uniform'}
  return dataclasses.replace(
    found,
    family='sat',
    lengths=_LENGTHS if scale != 'smoke' else (0.3, 1.0),
    baselines=(spec.Arm('uniform', uniform, 'baselines'),),
  )


def annealed(scale: str) -> spec.Scenario:
  """On from a model whose learning rate has decayed.

  SmolLM2; or a shallow one, on 20 tokens for each parameter of the deep one;
  not at scale paper.
  """
  lengths = (0.7, 1.0, 1.4, 2.0)
  if scale == 'llm':
    return dataclasses.replace(cpt(scale), lengths=lengths)
  found = scratch(scale, 20)
  config, rates = found.config, found.learning_rates
  config.model.num_layers //= 2
  base = ml_collections.ConfigDict(config)
  made = _scenario('annealed', 'sat', config, base, rates, lengths, scale)
  return dataclasses.replace(made, widen=found.widen)


def _paper(name, config) -> spec.Scenario:
  """TinyLlama-1.1B: `--config.model.init_from=MODEL_DIR` names its weights.

  The paper's corpora and settings are not public; these are ours.
  """
  for key in ('head_rate', 'channel_rate'):
    config.sparsity[key] = 0.0
  config.data.held_out = config.data.test = 0.1
  peak = config.optimizer.peak_lr
  rates = (peak / 2, peak, 2 * peak)
  return _scenario(
    f'{name}-paper', 'sat', config, None, rates, _LENGTHS, 'paper'
  )


def _paper_growth(config) -> spec.Scenario:
  """24 layers of width 2048, 100B tokens: the 1.1B model of Du et al. (2024).

  Sizes, batch, warm-up and learning rates are the paper's; the text is not.
  """
  model, train = config.model, config.train
  model.num_layers, model.embed_dim, model.mlp_dim = 24, 2048, 5504
  model.num_heads = model.num_kv_heads = 16
  model.head_dim, model.vocab_size = 128, 32_000
  model.dtype, model.scan = 'bfloat16', True
  data, optimizer = config.data, config.optimizer
  data.seq_len, train.batch_size = 2048, 1024
  train.num_steps = 47_684  # 100B tokens
  train.loss_chunk, train.log_every = 4096, 20
  train.checkpoint_every = 1000
  optimizer.peak_lr, optimizer.end_lr = 4e-4, 4e-5
  optimizer.warmup_steps = 3000
  config.growth.opt_state, config.growth.learning_rate = 'reset', 'restart'
  return _scenario(
    'growth-paper',
    'growth',
    config,
    None,
    (2e-4, 4e-4, 8e-4),
    _GROWTH_LENGTHS,
    'paper',
  )
