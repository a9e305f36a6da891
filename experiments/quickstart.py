"""Quickstart: pre-train and grow, continue with SAT, compare, export.

Claim     G_stack ends below training from scratch with as many FLOPs, and SAT
          with an exact forward pass makes a step faster; the tables say what
          both are worth beside what is simpler.
Runs      pre-training on the documentation of the Python standard library with
          equal FLOPs: 4 layers from scratch, 2 layers stacked to 4, 2 layers
          alone. Then the stacked model goes on with source code: dense, SAT,
          and dense for the time that SAT took.
Cost      under six minutes on two cores.
Command   make quickstart
Result    printed, and written to WORKDIR/quickstart.md. Run again, it goes on
          where it was stopped; a finished one is shown again. One seed: this
          shows how things work; it is no evidence about the methods.
"""

import argparse
import pathlib
import shutil
import sys

from rich import console as rich_console
from rich import table as rich_table

from configs import quickstart
import satjax
from satjax import errors, runtime
from satjax.config.run import Config
from satjax.generation import generate
from satjax.train import loop, phases, saved

DOCS, CODE = 'eval/stdlib:docs/loss', 'eval/stdlib:code/loss'
HOP = 200  # steps of 2 layers before they are stacked
SHALLOW = {'model.num_layers': 2}
NUM_STEPS = 300
CONTINUE = {
  'data.train': ('stdlib:code',),
  'train.num_steps': NUM_STEPS,
  'optimizer.schedule': 'cosine',
  'optimizer.weight_decay': 0.1,
  'optimizer.peak_lr': 2e-3,
  'optimizer.end_lr': 2e-4,
}
# What came nearest to dense training, and ahead of it for a base that has
# hardly trained, with its learning rate: results/sat_setting_base.md.
SAT = {
  'sparsity.head_rate': 0.5,
  'sparsity.channel_rate': 0.5,
  'sparsity.omitted_forward': 'exact',  # only the backward pass is sparse
  'sparsity.importance': 'magnitude',
  'sparsity.selection': 'top_k',
  'sparsity.refresh_every': 64,
  'sparsity.split': 1.0,  # all along, without a ladder
  'sparsity.rungs': 1,
  'optimizer.peak_lr': 4e-3,
  'optimizer.end_lr': 4e-4,
}
PROMPT = 'import os\n\n\ndef '


def make_config(**overrides) -> Config:
  values = quickstart.get_config()
  values.update_from_flattened_dict(overrides)
  return Config.from_dict(values)


def growth_configs() -> dict[str, Config]:
  """From scratch, stacked and shallow, with as many FLOPs."""
  scratch, shallow = make_config(), make_config(**SHALLOW)
  deep, cheap = (phases.step_flops(c, 0) for c in (scratch, shallow))
  total = deep * scratch.train.num_steps
  hop = (HOP * scratch.tokens_per_step, 'stack', 2)
  return {
    '4 layers from scratch': scratch,
    '2 layers, stacked to 4': make_config(
      **SHALLOW,
      **{
        'train.num_steps': HOP + round((total - HOP * cheap) / deep),
        'growth.hops': (hop,),
        'growth.opt_state': 'reset',
        'growth.learning_rate': 'restart',
      },
    ),
    '2 layers, never grown': make_config(
      **SHALLOW, **{'train.num_steps': round(total / cheap)}
    ),
  }


def training_seconds(records: list[dict]) -> float:
  """Time in steps and refreshes: no compilation, evaluation or saving."""
  timed = [r for r in records if 'speed/step_seconds' in r]
  steps = [0, *(r['step'] for r in timed)]
  return sum(
    r['speed/step_seconds'] * (r['step'] - last)
    for r, last in zip(timed, steps)
  )


def last(records: list[dict], name: str) -> float:
  """What a run says of itself at its end."""
  return [r[name] for r in records if name in r][-1]


def table(title: str, runs: dict[str, list[dict]]) -> rich_table.Table:
  """What each run took and reached; the first is the reference."""
  result = rich_table.Table(title=title)
  for name in ('run', 'steps', 'FLOPs', 'seconds', 'docs', 'code'):
    justify = 'left' if name == 'run' else 'right'
    result.add_column(name, justify=justify, overflow='fold')
  for name, records in runs.items():
    result.add_row(
      name,
      f'{last(records, "step"):,}',
      f'{last(records, "flops"):.2e}',
      f'{training_seconds(records):.1f}',
      f'{last(records, DOCS):.3f}',
      f'{last(records, CODE):.3f}',
    )
  return result


def verdict(what: str, runs: dict[str, list[dict]], source: str) -> str:
  """Who ends lowest, and by how much."""
  losses = {name: last(records, source) for name, records in runs.items()}
  best, *others = sorted(losses, key=losses.get)
  gaps = ', '.join(f'{losses[o] - losses[best]:.3f} below {o}' for o in others)
  return f'{what}: {best} wins, {gaps}.'


def run_all(workdir: pathlib.Path, console: rich_console.Console) -> None:
  grown, records = growth_configs(), {}
  for number, (name, config) in enumerate(grown.items(), 1):
    console.rule(f'{number} of 6: pre-training on documentation, {name}')
    folder = ('scratch', 'stacked', 'shallow')[number - 1]
    records[name] = loop.train(config, workdir / folder)

  base = workdir / 'stacked-model'
  satjax.save(saved.restore(workdir / 'stacked').model, base)
  start = CONTINUE | {'model.init_from': str(base)}
  console.rule('4 of 6: the stacked model on with code, dense')
  dense = loop.train(make_config(**start), workdir / 'dense')
  console.rule('5 of 6: the same with SAT')
  sat = loop.train(make_config(**start | SAT), workdir / 'sat')
  console.rule('6 of 6: dense for the time that SAT took')
  share = training_seconds(sat) / training_seconds(dense)
  fewer = {'train.num_steps': max(20, round(NUM_STEPS * share))}
  timed = loop.train(make_config(**start | fewer), workdir / 'equal-time')
  continued = {'dense': dense, 'SAT': sat, 'dense, equal time': timed}
  show(console, records, continued)

  run = saved.restore(workdir / 'dense')
  satjax.save(run.model, workdir / 'model', tokenizer=run.tokenizer)
  how = generate.Options(max_tokens=120, temperature=0.7)
  (sample,) = generate.run(
    run.model.config, run.params, run.tokenizer, [PROMPT], how
  ).texts
  console.print('A continuation by the dense model:', style='bold')
  console.print(PROMPT + sample, markup=False, highlight=False)
  console.print(f'\nExported to {workdir / "model"}')


def show(console: rich_console.Console, grown: dict, continued: dict) -> None:
  """Both tables, and who wins."""
  title = 'Pre-training with equal FLOPs: held-out loss in nats a byte'
  console.print(table(title, grown))
  console.print(verdict('Equal FLOPs', grown, DOCS))
  console.print(
    'So short a run has half a byte a parameter, where a shallow model is best.'
    ' With 17 the stacked one beats both (docs/results.md).\n'
  )
  console.print(table('On with code: the same losses', continued))
  fair = {name: continued[name] for name in ('SAT', 'dense, equal time')}
  console.print(verdict('Equal time', fair, CODE))
  dense, sat = continued['dense'], continued['SAT']
  faster = training_seconds(dense) / training_seconds(sat)
  most = last(dense, 'flops') / last(sat, 'flops')
  console.print(
    f'A SAT step is {faster:.2f} times as fast as a dense one; its FLOPs allow'
    f' {most:.2f}. One seed: this shows how things work; it is no evidence'
    ' about the methods.\n'
  )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  workdir = parser.parse_args().workdir
  width = min(88, shutil.get_terminal_size((88, 24)).columns)
  console = rich_console.Console(width=width, record=True)
  runtime.prepare()
  try:
    run_all(workdir, console)
  except errors.SatjaxError as error:
    print(f'quickstart: {error}', file=sys.stderr)
    return error.exit_code
  except KeyboardInterrupt:
    print('quickstart: stopped; run it again to go on', file=sys.stderr)
    return 75
  text = f'```\n{console.export_text()}```\n'
  (workdir / 'quickstart.md').write_text(text, encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main())
