"""Does a ranking of metrics on a small model predict that on a real one?

Probes SmolLM2 (`make real-model`) and a byte model of a million parameters, and
compares by how much each metric hurts them where it chooses what is left out:

    python experiments/damage.py --workdir=runs/damage

About ten minutes on two cores. What has been probed is not probed again, so
that with --workdir=experiments/results/damage only the comparison is made. The
tables themselves are those of `satjax probe`; docs/methods.md draws on them.
"""

import argparse
import collections
import json
import pathlib

from scipy import stats

from satjax import cli, console

PROBES = {
  'smollm2': ['--model=models/smollm2', '--rows=8'],
  'byte': ['--rows=32'],
}
# Shares that are left out of both, as near to each other as their units allow.
PAIRS = {
  'heads': (((3, 8), (3, 9)), ((5, 8), (6, 9))),
  'mlp': (((128, 512), (384, 1536)), ((256, 512), (768, 1536))),
}
COLUMNS = (
  *('units', 'bytes', 'SmolLM2', 'rank correlation'),
  *('best on bytes', 'on SmolLM2', 'best there', 'costs'),
)


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workdir', required=True, type=pathlib.Path)
  folder = parser.parse_args().workdir
  found = {name: probe(folder, name) for name in PROBES}
  print(console.markdown(COLUMNS, list(rows(**found))))
  print(
    'Rank correlation: that of Spearman, over the metrics; 1 if the small model'
    ' orders them as the real one does, 0 if it says nothing. Costs are nats a'
    ' token, at once.'
  )


def probe(folder, name):
  """What leaving out costs: nats by axis, units left out, units, metric."""
  file, run = folder / f'{name}.json', folder / 'pretrain'
  if not file.exists():
    which = PROBES[name]
    if name == 'byte':
      train = ['train', '--config=configs/quickstart.py', f'--workdir={run}']
      assert cli.main(train) == 0
      which = [*which, f'--workdir={run}']
    assert (
      cli.main(['probe', *which, '--data=stdlib:docs', f'--out={file}']) == 0
    )
  nats = collections.defaultdict(dict)
  for row in json.loads(file.read_text())['damage']:
    where = row['axis'], row['left_out'], row['of']
    nats[where][row['metric']] = row['damage']
  return nats


def rows(byte, smollm2):
  for axis, pairs in PAIRS.items():
    for small, real in pairs:
      nats, own = byte[axis, *small], smollm2[axis, *real]
      metrics = [metric for metric in own if metric in nats]
      order = [[of[metric] for metric in metrics] for of in (nats, own)]
      first, best = (min(metrics, key=of.get) for of in (nats, own))
      yield (
        {'mlp': 'channels'}.get(axis, axis),
        *('{}/{}'.format(*share) for share in (small, real)),
        f'{stats.spearmanr(*order).statistic:.2f}',
        *(first, f'{own[first]:.2f}', best, f'{own[best]:.2f}'),
      )


if __name__ == '__main__':
  main()
