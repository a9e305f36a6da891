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
import copy
import json
import pathlib
import statistics

from rich import console as rich_console
from rich import table as rich_table

from configs import quickstart
import satjax
from satjax import config as config_lib
from satjax import flops, generate
from satjax.train import evaluation, loop, phases, saved

DOCS, CODE = 'stdlib:docs', 'stdlib:code'
NUM_STEPS = 200
CONTINUE = {
  'data.train': (CODE,),
  'train.num_steps': NUM_STEPS,
  'optimizer.peak_lr': 1e-3,
  'optimizer.end_lr': 1e-4,
  'optimizer.warmup_steps': 10,
}
SAT = {'sparsity.head_rate': 0.5, 'sparsity.channel_rate': 0.5}


def make_config(**overrides) -> config_lib.Config:
  values = copy.deepcopy(quickstart.get_config())
  values.update_from_flattened_dict(overrides)
  return config_lib.Config.from_dict(values)


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


def rung_table(config, sat_records, dense_seconds) -> rich_table.Table:
  """Speed of each rung beside the dense run and the limit."""
  tokens = config.tokens_per_step
  table = rich_table.Table(title='Speed by rung (median step)')
  for name in ('rung', 'omitted', 'tokens/s', 'ratio', 'FLOPs limit'):
    table.add_column(name, justify='right')
  table.add_row(
    'dense run', '0%', f'{tokens / dense_seconds:,.0f}', '1.00', '1.00'
  )
  first_step = [0, *phases.ladders(config)['mlp'].boundaries]
  dense_flops = flops.train_flops_per_token(config.model, config.data.seq_len)
  for rung, seconds in sorted(seconds_by_rung(sat_records).items()):
    phase = phases.phase_at(config, first_step[rung])
    median = statistics.median(seconds)
    limit = dense_flops * tokens / phases.step_flops(config, first_step[rung])
    table.add_row(
      str(rung),
      f'{phases.omission_rate(config, phase):.0%}',
      f'{tokens / median:,.0f}',
      f'{dense_seconds / median:.2f}',
      f'{limit:.2f}',
    )
  return table


def run_table(rows: dict[str, tuple]) -> rich_table.Table:
  """Held-out loss, time and ratio of each run."""
  table = rich_table.Table(title='Runs (held-out loss in nats a byte)')
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
  for name, cells in rows.items():
    table.add_row(name, *cells)
  return table


def evaluate(workdir: pathlib.Path) -> tuple[str, str]:
  losses = evaluation.evaluate_run(str(workdir))['eval']
  return tuple(f'{losses[source]["loss"]:.3f}' for source in (DOCS, CODE))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  workdir = parser.parse_args().workdir
  console = rich_console.Console(width=100, record=True)

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
  ratio = training_seconds(dense) / training_seconds(sat)
  console.rule('4 of 4: on with code, dense for the time that SAT took')
  fewer = max(20, round(NUM_STEPS / ratio))
  timed_config = make_config(**start | {'train.num_steps': fewer})
  timed = loop.train(timed_config, workdir / 'dense-equal-time')

  run = saved.restore(workdir / 'sat')
  satjax.save(run.model, workdir / 'sat-model', tokenizer=run.tokenizer)
  sample = generate.generate(
    run.model.config,
    run.params,
    run.tokenizer,
    'import os\n\n\ndef ',
    max_tokens=120,
    temperature=0.7,
  )

  limit = dense[-2]['flops'] / sat[-2]['flops']
  console.print(
    run_table(
      {
        'pre-trained': ('240', *evaluate(workdir / 'pretrain'), '', '', ''),
        'dense': (
          str(NUM_STEPS),
          *evaluate(workdir / 'dense'),
          f'{training_seconds(dense):.1f}',
          '1.00',
          '1.00',
        ),
        'SAT': (
          str(NUM_STEPS),
          *evaluate(workdir / 'sat'),
          f'{training_seconds(sat):.1f}',
          f'{ratio:.2f}',
          f'{limit:.2f}',
        ),
        'dense, equal time': (
          str(fewer),
          *evaluate(workdir / 'dense-equal-time'),
          f'{training_seconds(timed):.1f}',
          '',
          '',
        ),
      }
    )
  )
  dense_seconds = statistics.median(seconds_by_rung(dense)[0])
  console.print(rung_table(sat_config, sat, dense_seconds))
  console.print('A continuation by the SAT model:', style='bold')
  console.print('import os\n\n\ndef ' + sample, markup=False, highlight=False)
  console.print(f'\nExported to {workdir / "sat-model"}')
  waits = [r for r in sat if 'time/data' in r][-1]
  console.print(
    f'{waits["time/data"] / waits["time/step"]:.1%} of the step time'
    ' was spent waiting for data'
  )
  (workdir / 'quickstart.md').write_text(console.export_text(clear=False))
  (workdir / 'quickstart.json').write_text(
    json.dumps({'ratio': ratio, 'limit': limit})
  )


if __name__ == '__main__':
  main()
