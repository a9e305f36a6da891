"""The model card of an export: what it was made of, and how.

A README.md as the Hugging Face hub shows it. It names no folder of the machine
it was written on.
"""

from collections.abc import Iterator, Mapping, Sequence
import importlib.metadata
import os
from pathlib import Path, PurePath
import re
from typing import Any

from satjax import console, flops
from satjax.config.run import Config
from satjax.interop import writer
from satjax.train import metrics
from satjax.train.saved import Saved

_HUB_ID = re.compile(r'[\w.-]+/[\w.-]+(@[\w.-]+)?')


def write(
  run: Saved, workdir: str | os.PathLike, is_adapter: bool = False
) -> str:
  """The card of a checkpoint, of which metrics.jsonl tells the losses."""
  base = run.config.model.init_from
  known = not Path(base).exists() and _HUB_ID.fullmatch(base)
  library = 'peft' if is_adapter else 'transformers'
  head = {'library_name': library, 'pipeline_tag': 'text-generation'}
  if known:
    head['base_model'] = base.partition('@')[0]
  front = ''.join(f'{name}: {value}\n' for name, value in head.items())
  name = base if known else PurePath(base).name
  table = console.markdown(('', ''), [*_facts(run, name, is_adapter)])
  losses = [*_losses(metrics.read(workdir), run.step)]
  shown = console.markdown(('loss, nats a token', 'before', 'after'), losses)
  return (
    f'---\n{front}tags:\n- satjax\n{writer.CARD_MARK}\n---\n\n'
    f'# {name or "A language model"}, trained with satjax\n\n{table}'
    + (f'\n{shown}' if losses else '')
  )


def _facts(
  run: Saved, base: str, is_adapter: bool
) -> Iterator[tuple[str, str]]:
  config, model = run.config, run.stage.model
  train, optimizer = config.train, config.optimizer
  yield 'base', base or 'random weights'
  yield 'parameters', f'{flops.num_params(model):,}'
  yield 'data', ', '.join(map(_source, config.data.train))
  yield 'chat template', _template(run)
  yield 'method', '; '.join(_methods(config, is_adapter))
  yield (
    'length',
    f'{run.step} of {train.num_steps} steps of {train.batch_size} rows of'
    f' {run.stage.seq_len} tokens',
  )
  yield (
    'learning rate',
    f'{optimizer.peak_lr:g} to {optimizer.end_lr:g}, {optimizer.schedule},'
    f' {optimizer.warmup_steps} steps of warm-up; {optimizer.name}, weight'
    f' decay {optimizer.weight_decay:g}',
  )
  yield 'satjax', importlib.metadata.version('satjax')


def _template(run: Saved) -> str:
  """The one that was trained, and what asked for it if that says more."""
  asked, found = run.config.data.template, run.encoder.chat.identity
  if found.startswith('model:'):
    found = "the tokenizer's own"
  return found if asked in ('auto', 'model', found) else f'{asked}: {found}'


def _source(source: Any) -> str:
  """A source without its folder, and its share where it has one."""
  name, *share = source if isinstance(source, (tuple, list)) else (source,)
  kind, _, path = name.partition(':')
  name = f'{kind}:{PurePath(path).name}' if path else kind
  return f'{name} ({share[0]:g})' if share else name


def _methods(config: Config, is_adapter: bool) -> Iterator[str]:
  lora, sparsity = config.lora, config.sparsity
  if lora.is_on:
    yield (
      f'LoRA of rank {lora.rank}, alpha {lora.alpha:g}, on'
      f' {", ".join(lora.targets)}'
      + ('' if is_adapter else '; added to the weights')
    )
  else:
    yield 'all weights trained'
  if sparsity.is_on:
    named = {'heads': 'heads', 'mlp': 'channels', 'layers': 'layers'}
    cut = (
      f'{rate:.0%} of {named[axis]} (by {sparsity.metric(axis)},'
      f' {sparsity.forward(axis)})'
      for axis, rate in sparsity.rates.items()
      if rate
    )
    yield f'SAT: {" and ".join(cut)} left out at first'
  for hop in config.growth.hops:
    yield f'grown: {hop}'


def _losses(
  records: Sequence[Mapping[str, float]], step: int
) -> Iterator[tuple[str, str, str]]:
  """Name, first and last value of each loss of a run up to a step."""
  found: dict[str, list[str]] = {}
  for record in (r for r in records if r['step'] <= step):
    for name, value in record.items():
      if name.endswith('/loss') and value is not None:
        values = found.setdefault(name.removesuffix('/loss'), [])
        values.append(f'{value:.4f} (step {record["step"]})')
  for name, values in sorted(found.items()):
    split, *source = name.split('/', 1)
    before = values[0] if len(values) > 1 else ''
    yield ' '.join([split, *map(_source, source)]), before, values[-1]
