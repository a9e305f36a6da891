"""Quickstart: pre-train, continue on code dense and with SAT, compare, export.

Claim     a SAT step is visibly faster than a dense one, close to the limit that
          its FLOPs set. What that is worth in loss, the table says too: dense
          trained for SAT's time stands beside it.
Runs      pre-training on the documentation of the Python standard library, then
          three continuations on its source code: dense, SAT (rate 0.5 on heads
          and channels, LORS), and dense for the time that SAT took.
Cost      about five minutes on two cores.
Command   make quickstart
Result    printed, and written to WORKDIR/quickstart.md. One seed: this shows
          how things work; it is no evidence about the method.
"""

import argparse
import pathlib
import statistics
import sys

from rich import console as rich_console
from rich import table as rich_table

from configs import quickstart
import satjax
from satjax import errors, runtime
from satjax.config.run import Config
from satjax.generation import generate
from satjax.train import loop, metrics, phases, saved, subjects

DOCS, CODE = 'stdlib:docs', 'stdlib:code'
NUM_STEPS = 160
PROMPT = 'import os\n\n\ndef '
CONTINUE = {
  'data.train': (CODE,),
  'train.num_steps': NUM_STEPS,
  'optimizer.schedule': 'cosine',
  'optimizer.weight_decay': 0.1,
  'optimizer.peak_lr': 1e-3,
  'optimizer.end_lr': 1e-4,
  'optimizer.warmup_steps': 10,
}
SAT = {'sparsity.head_rate': 0.5, 'sparsity.channel_rate': 0.5}


def make_config(**overrides) -> Config:
  values = quickstart.get_config()
  values.update_from_flattened_dict(overrides)
  return Config.from_dict(values)


def seconds_by_rung(records: list[dict]) -> dict[int, list[float]]:
  """Step times of each rung, without those that touch another rung."""
  timed = [r for r in records if 'speed/step_seconds' in r]
  result = {}
  for before, record in zip(timed, timed[1:]):
    if before['sparsity/rung'] == record['sparsity/rung']:
      rung = int(record['sparsity/rung'])
      result.setdefault(rung, []).append(record['speed/step_seconds'])
  return result


def training_seconds(records: list[dict]) -> float:
  """Time in steps and refreshes: no compilation, evaluation or saving."""
  timed = [r for r in records if 'speed/step_seconds' in r]
  steps = [0, *(r['step'] for r in timed)]
  return sum(
    r['speed/step_seconds'] * (r['step'] - last)
    for r, last in zip(timed, steps)
  )


def rung_table(config, sat, dense) -> rich_table.Table:
  """Speed of each rung beside the dense run and the limit."""
  table = rich_table.Table(title='Speed by rung (median step)')
  for name in ('rung', 'omitted', 'tokens/s', 'ratio', 'FLOPs limit'):
    table.add_column(name, justify='right')
  tokens = config.tokens_per_step
  reference = statistics.median(seconds_by_rung(dense)[0])
  table.add_row('dense', '0%', f'{tokens / reference:,.0f}', '1.00', '1.00')
  first_step = [0, *phases.ladders(config)['mlp'].boundaries]
  all_flops = phases.step_flops(config, config.train.num_steps - 1)
  for rung, seconds in sorted(seconds_by_rung(sat).items()):
    step, median = first_step[rung], statistics.median(seconds)
    omitted = phases.omission_rate(phases.phase_at(config, step))
    table.add_row(
      str(rung),
      f'{omitted:.0%}',
      f'{tokens / median:,.0f}',
      f'{reference / median:.2f}',
      f'{all_flops / phases.step_flops(config, step):.2f}',
    )
  return table


def run_table(workdirs: dict[str, pathlib.Path]) -> rich_table.Table:
  """Held-out loss, time, and the ratio to the dense run and its limit."""
  table = rich_table.Table(
    title='Runs: held-out loss in nats a byte, seconds in training steps'
  )
  for name in (
    'run',
    'steps',
    'docs',
    'code',
    'seconds',
    'ratio',
    'FLOPs limit',
  ):
    table.add_column(name, justify='left' if name == 'run' else 'right')
  dense = metrics.read(workdirs['dense'])
  for name, workdir in workdirs.items():
    losses = subjects.evaluate(subjects.of_run(workdir))['eval']
    records = metrics.read(workdir)
    last = [r for r in records if 'flops' in r][-1]
    cells = [
      str(last['step']),
      *(f'{losses[source]["loss"]:.3f}' for source in (DOCS, CODE)),
      f'{training_seconds(records):.1f}',
    ]
    if last['step'] == NUM_STEPS:
      reference = [r for r in dense if 'flops' in r][-1]
      ratio = training_seconds(dense) / training_seconds(records)
      cells += [f'{ratio:.2f}', f'{reference["flops"] / last["flops"]:.2f}']
    table.add_row(name, *cells)
  return table


def run_all(workdir: pathlib.Path, console: rich_console.Console) -> None:
  console.rule('1 of 4: pre-training on documentation')
  loop.train(make_config(), workdir / 'pretrain')
  base = workdir / 'pretrain-model'
  satjax.save(saved.restore(workdir / 'pretrain').model, base)
  start = CONTINUE | {'model.init_from': str(base)}

  console.rule('2 of 4: on with code, dense')
  dense = loop.train(make_config(**start), workdir / 'dense')
  console.rule('3 of 4: on with code, sparse (SAT)')
  sat_config = make_config(**start, **SAT)
  sat = loop.train(sat_config, workdir / 'sat')
  console.rule('4 of 4: on with code, dense for the time that SAT took')
  share = training_seconds(sat) / training_seconds(dense)
  fewer = {'train.num_steps': max(20, round(NUM_STEPS * share))}
  loop.train(make_config(**start | fewer), workdir / 'dense-equal-time')

  run = saved.restore(workdir / 'sat')
  satjax.save(run.model, workdir / 'sat-model', tokenizer=run.tokenizer)
  how = generate.Options(max_tokens=120, temperature=0.7)
  (sample,) = generate.run(
    run.model.config, run.params, run.tokenizer, [PROMPT], how
  ).texts

  names = ('pretrain', 'dense', 'sat', 'dense-equal-time')
  console.print(run_table({name: workdir / name for name in names}))
  console.print(rung_table(sat_config, sat, dense))
  waited = [r for r in sat if 'time/data' in r][-1]
  console.print(
    f'{waited["time/data"] / waited["time/step"]:.1%} of the step time was'
    ' spent waiting for data. One seed: a demonstration, not evidence.\n'
  )
  console.print('A continuation by the SAT model:', style='bold')
  console.print(PROMPT + sample, markup=False, highlight=False)
  console.print(f'\nExported to {workdir / "sat-model"}')


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  workdir = parser.parse_args().workdir
  console = rich_console.Console(width=88, record=True)
  runtime.prepare()
  try:
    run_all(workdir, console)
  except errors.SatjaxError as error:
    print(f'quickstart: {error}', file=sys.stderr)
    return error.exit_code
  (workdir / 'quickstart.md').write_text(f'```\n{console.export_text()}```\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
