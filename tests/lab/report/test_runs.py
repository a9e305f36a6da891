"""Reports of runs whose files are written by hand, as the loop writes them."""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from satjax import errors
from satjax.lab.report import page as page_lib
from satjax.lab.report import run_plots
from satjax.lab.report import runs as runs_lib

MODEL = {
  'num_layers': 2,
  'embed_dim': 8,
  'num_heads': 4,
  'num_kv_heads': 2,
  'head_dim': 6,
  'mlp_dim': 16,
  'vocab_size': 32,
  'tied': False,
  'qkv_bias': False,
  'qk_norm': False,
}


def records(num_steps, *, rates):
  """Training records of every step, and two held-out losses at the end."""
  flops, result = 0.0, [{'step': 0, 'eval/stdlib:docs/loss': 6.0}]
  for step in range(1, num_steps + 1):
    rung = (step - 1) * len(rates) // num_steps
    flops += 1e12 * (1 - rates[rung])
    result.append(
      {
        'step': step,
        'tokens': 64 * step,
        'flops': flops,
        'train/loss': 2 + 4 / step,
        'speed/step_seconds': 0.5,
        'speed/tokens_per_second': 128.0 + step % 2,
        'speed/mfu': 0.25,
        'sparsity/rung': rung,
        'sparsity/omission_rate': rates[rung],
        'model/num_layers': 2,
        'time/init': 3.0,
        'time/step': 0.5 * step,
        'time/data': 0.1 * step,
      }
    )
  last = {'eval/stdlib:docs/loss': 2.5, 'eval/text:a/*.txt/loss': 3.25}
  return [*result, {'step': num_steps, **last}]


def sparse(num_steps=20):
  result = records(num_steps, rates=(0.5, 0.25, 0.0))
  for step, record in enumerate(result[1:-1], 1):
    record |= {
      'sparsity/heads_kept': 4 * (1 - record['sparsity/omission_rate']),
      'sparsity/channels_kept': 16 * (1 - record['sparsity/omission_rate']),
      'sparsity/overlap_heads': 0.5,
      'sparsity/visited_mlp': min(1, 0.5 + 0.05 * step),
      'sparsity/entropy_mlp': None,
      'sparsity/nonfinite_scores': 0,
      'time/probe': 0.2 * step,
    }
  return result


def write(path, lines, *, visits=None, **config):
  path.mkdir(parents=True)
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (path / 'metrics.jsonl').write_text(text)
  config = {'model': MODEL, 'train': {'num_steps': 20}, **config}
  (path / 'config.json').write_text(json.dumps(config))
  environment = {
    'commit': 'abc1234+',
    'devices': '1 x cpu',
    'packages': {'jax': '0.10.2'},
  }
  (path / 'environment.json').write_text(json.dumps(environment))
  if visits:
    np.savez(path / 'visits.npz', **visits)
  return path


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A dense run, one with everything, and one that was just begun."""
  path = tmp_path_factory.mktemp('report')
  random = np.random.default_rng(0)
  visits = {
    'heads': random.integers(0, 21, (2, 4)),
    'mlp': random.integers(0, 21, (2, 3000)),
    'selections': np.int64(20),
  }
  dense = write(path / 'dense', records(20, rates=(0.0,)))
  sat = write(
    path / '_sat<1>&$x$', sparse(), visits=visits, sparsity={'head_rate': 0.5}
  )
  begun = write(path / 'begun', [{'step': 0, 'eval/stdlib:docs/loss': 6.0}])
  return [dense, sat, begun]


@pytest.fixture(scope='module')
def page(runs):
  out = runs[0].parent / 'deep' / 'report.html'
  report(runs, out)
  return out.read_text()


def tables(paths):
  return page_lib.tables(page_lib.read(paths))


def report(paths, out):
  page_lib.report(page_lib.read(paths), out)


def rows(text):
  """Cells by label of a plain table with two or more blanks between cells."""
  lines = [re.split(r'  +', line.strip()) for line in text.splitlines()]
  return {cells[0]: cells[1:] for cells in lines}


def test_the_tables_say_what_the_runs_did(runs):
  table = rows(tables(runs))
  assert table['results'] == ['dense', '_sat<1>&$x$', 'begun']
  assert table['steps'] == ['20', '20', '0 of 20']
  assert table['tokens'] == ['1,280', '1,280', '-']
  assert table['held-out loss, stdlib:docs (nats/token)'] == [
    *('2.5000', '2.5000', '6.0000')
  ]
  assert table['held-out loss, text:a/*.txt (nats/token)'][2] == '-'
  # Refreshes are part of training: 20 * (0.5 + 0.1 + 0.2).
  assert table['training time (s)'] == ['12.0', '16.0', '-']
  assert table['tokens/s (median)'][0] == '128'
  assert table['executed FLOPs'] == ['2.000e+13', '1.475e+13', '-']
  assert table['MFU (median)'][:2] == ['25.0%', '25.0%']
  assert table['data'] == ['2.0 s (13%)', '2.0 s (11%)', '-']
  assert table['omission rate by rung'] == ['0', '0.5, 0.25, 0', '-']
  assert table['sparsity.head_rate'] == ['-', '0.5', '-']
  assert 'model.num_layers' not in table  # all have the same
  assert table['commit'] == ['abc1234+'] * 3
  assert table['jax'] == ['0.10.2'] * 3


def test_the_number_of_parameters_is_that_of_the_model(runs):
  # Both embeddings, final norm, and two layers of q and o, k and v, MLP, norms.
  layer = 2 * 8 * 4 * 6 + 2 * 8 * 2 * 6 + 3 * 8 * 16 + 2 * 8
  number = 2 * 32 * 8 + 8 + 2 * layer
  assert rows(tables(runs))['parameters'] == [f'{number:,}'] * 3


def curve(num_steps, cost, layers, *, start=0, flops=0.0, gain=1.0):
  """Records of steps whose loss depends on their FLOPs and on `gain`."""
  result = []
  for step in range(start + 1, start + num_steps + 1):
    flops += cost
    result.append(
      {
        'step': step,
        'flops': flops,
        'train/loss': 2 + 20 / (gain * flops + 10),
        'model/num_layers': layers,
      }
    )
  return result


def grown_run(num_steps=100):
  """A base of half the cost for 20 steps, whose loss is not to count."""
  base = curve(20, 0.5, 2, gain=100)
  hop = {'step': 20, 'growth/loss_before': 3.5, 'growth/loss_after': 4.25}
  after = curve(num_steps, 1.0, 4, start=20, flops=10.0, gain=1.25)
  return [*base, hop, *after]


def test_growth_is_compared_at_equal_loss(tmp_path):
  scratch = write(tmp_path / 'scratch', curve(100, 1.0, 4))
  other = write(tmp_path / 'other', curve(100, 1.0, 4, gain=2.0))
  grown = write(tmp_path / 'grown', grown_run())
  table = rows(tables([scratch, grown, other]))
  assert table['speed-up at equal loss'] == [
    *(f'at {share}% of its FLOPs' for share in (50, 75, 100))
  ]
  gains = table['grown against scratch, training']
  found = [float(gain.rstrip('%')) for gain in gains]
  assert gains[0].startswith('+') and found == pytest.approx([25] * 3, abs=0.5)
  # The other one falls faster than it can follow.
  last = table['grown against other, training']
  assert last[0].startswith('-3') and last[2] == '-'
  assert not any('against grown' in label for label in table)


def test_every_hop_has_a_row(tmp_path):
  lines = [
    *curve(10, 0.5, 2),
    {'step': 10, 'growth/loss_before': 3.5, 'growth/loss_after': 4.25},
    *curve(10, 1.0, 4, start=10, flops=5.0),
    {'step': 17, 'growth/steps_to_recover': 7},
    {'step': 1020, 'growth/loss_before': 2.5, 'growth/loss_after': None},
    *curve(10, 2.0, 8, start=1020, flops=15.0),
  ]
  lines.sort(key=lambda line: line['step'])  # stable
  path = write(tmp_path / 'run', lines)
  table = rows(tables([path]))
  assert table['growth'] == [
    *('step', 'loss before', 'loss after', 'steps to recover')
  ]
  assert table['run, hop 1'] == ['10', '3.5000', '4.2500', '7']
  assert table['run, hop 2'] == ['1,020', '2.5000', '-', 'not yet']
  assert 'speed-up at equal loss' not in table  # with what?


def test_held_out_losses_are_compared_where_both_have_them(tmp_path):
  def held_out(lines, name):
    for line in lines[9::10]:
      line[f'eval/{name}/loss'] = line['train/loss']
    return lines

  runs = [
    write(tmp_path / 'a', held_out(curve(100, 1.0, 4), 'x')),
    write(tmp_path / 'b', held_out(curve(100, 1.0, 4), 'y')),
    write(tmp_path / 'c', held_out(grown_run(), 'x')),
  ]
  table = rows(tables(runs))
  gains = table['c against a, held-out, x']
  assert [float(g.rstrip('%')) for g in gains] == pytest.approx([25] * 3, abs=2)
  assert 'c against b, training' in table
  assert 'c against b, held-out, x' not in table


def test_a_run_that_ends_as_it_grows_is_not_compared(tmp_path):
  runs = [
    write(tmp_path / 'scratch', curve(100, 1.0, 4)),
    write(tmp_path / 'grown', grown_run(1)),
  ]
  table = rows(tables(runs))
  assert table['grown, hop 1'] == ['20', '3.5000', '4.2500', 'not yet']
  assert 'speed-up at equal loss' not in table


def test_without_growth_there_are_no_such_tables(runs):
  table = rows(tables(runs))
  assert 'growth' not in table and 'speed-up at equal loss' not in table


def test_the_page_needs_nothing_but_itself(page):
  assert '<script' not in page
  links = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
  assert links and all(x.startswith(('#', 'data:image/png;')) for x in links)
  rest = re.sub(r'"data:[^"]*"', '', page)
  assert '//' not in rest and '@import' not in rest
  assert all(x.startswith('#') for x in re.findall(r'url\(([^)]*)', rest))
  assert '_sat&lt;1&gt;&amp;$x$' in page and '<1>' not in page


def pictures(page):
  """Panels by what they are called."""
  found = re.findall(
    r'<svg role="img" aria-label="([^"]*)".*?</svg>', page, re.S
  )
  return list(dict.fromkeys(found))


def test_every_plot_is_there_and_takes_the_colours_of_the_page(page):
  assert pictures(page) == [
    'Training loss',
    'Held-out loss',
    'Speed',
    'Omission and selections',
    'Visits: _sat&lt;1&gt;&amp;$x$',
  ]
  assert 'Channels are sorted in each layer' in page
  assert 'currentColor' in page and 'prefers-color-scheme: dark' in page
  assert page.count('#24292f') == 1  # in the style alone
  for svg in re.findall(r'<svg.*?</svg>', page, re.S):
    whole = svg.replace('xlink:', '')  # a prefix that HTML knows
    assert ElementTree.fromstring(whole).tag == 'svg'


def test_no_two_ids_are_equal(page):
  ids = re.findall(r' id="([^"]*)"', page)
  assert len(ids) > 100 and len(set(ids)) == len(ids)
  used = re.findall(r'(?:href="|url\()#([^")]*)', page)
  assert used and set(used) <= set(ids)


def test_what_nobody_recorded_is_left_out(runs, tmp_path):
  out = tmp_path / 'report.html'
  report(runs[2:], out)
  text = out.read_text()
  assert pictures(text) == []
  assert 'MFU' not in text


def test_dense_runs_have_no_selections(runs):
  titles = [p.title for p in run_plots.of_runs(runs_lib.read(runs[:1]))]
  assert 'Omission and selections' not in titles
  assert 'Training loss' in titles


def test_a_clock_that_starts_anew_goes_on(tmp_path):
  times = [(1, 1), (2, 1), (0.5, 2), (1, 2)]
  lines = [
    {'step': n, 'time/step': step, 'time/init': init}
    for n, (step, init) in enumerate(times, 1)
  ]
  lines.append({'step': 6, 'eval/x/loss': 1.0})
  (run,) = runs_lib.read([write(tmp_path / 'run', lines)])
  np.testing.assert_allclose(run.columns['time/step'], [1, 2, 2.5, 3, 3])
  np.testing.assert_allclose(run.columns['time/init'], [1, 1, 3, 3, 3])
  np.testing.assert_allclose(run.columns['seconds'], run.columns['time/step'])


def test_a_held_out_loss_between_records_has_its_cost(tmp_path):
  lines = [{'step': 10, 'tokens': 100}, {'step': 20, 'tokens': 300}]
  lines[1:1] = [{'step': 15, 'eval/x/loss': 1.0}]
  lines[:0] = [{'step': 0, 'eval/x/loss': 2.0}]
  (run,) = runs_lib.read([write(tmp_path / 'run', lines)])
  np.testing.assert_array_equal(run.columns['tokens'], [0, 100, 200, 300])


def test_names_are_as_long_as_it_takes(tmp_path):
  for name in ('a/run', 'b/run'):
    write(tmp_path / name, records(2, rates=(0.0,)))
  paths = [tmp_path / 'a/run', tmp_path / 'b/run']
  assert rows(tables(paths))['results'] == ['a/run', 'b/run']
  assert rows(tables(paths[:1]))['results'] == ['run']
  with pytest.raises(errors.ConfigError, match='each once'):
    tables([paths[0], paths[0]])
  with pytest.raises(errors.ConfigError, match='one or more'):
    tables([])


def test_smoothing_keeps_what_matters():
  line = np.arange(1000.0)
  np.testing.assert_allclose(run_plots.smooth(line)[:960], line[:960])
  assert run_plots.smooth(np.array([3.0])) == [3.0]


def test_a_folder_that_is_no_workdir_is_refused(tmp_path, runs):
  with pytest.raises(errors.ConfigError, match='none is not a workdir'):
    tables([tmp_path / 'none'])
  with pytest.raises(errors.ConfigError, match='name .*dense'):
    tables([runs[0].parent])  # says which folders below are runs


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', 'no records'),
    ('{"step": 1', 'no records'),
    ('{"step": 1}\n{"step": \n{"step": 3}\n', 'line 2, \'{"step": \''),
    ('{"step": 1}\n\n{"step": 3}\n', 'line 2'),
    ('{"step": 2}\n{"step": 1}\n', 'line 2.* at least 2'),
    ('{"loss": 1}\n', 'line 1'),
    ('[1]\n', 'line 1'),
    ('{"step": 1, "x": "y"}\n', 'line 1'),
  ],
)
def test_broken_metrics_are_refused(text, message, tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(text)
  with pytest.raises(errors.DataError, match=message) as caught:
    tables([tmp_path])
  assert str(tmp_path) in str(caught.value)


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 2, "to')
  assert rows(tables([tmp_path]))['steps'] == ['1']


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('config.json', b'{'),
    ('config.json', b'[]'),
    ('environment.json', b'\xff'),
    ('visits.npz', b'PK\x03\x04 cut'),
    ('visits.npz', b'text'),
    ('visits.npz', b''),
    ('metrics.jsonl', b'\xff\xfe'),
  ],
)
def test_other_broken_files_are_refused(name, content, tmp_path):
  path = write(tmp_path / 'run', records(2, rates=(0.0,)))
  (path / name).write_bytes(content)
  with pytest.raises(errors.DataError, match=name):
    tables([path])


@pytest.mark.parametrize(
  'visits',
  [
    {'heads': np.ones((2, 4), int)},
    {'heads': np.ones(4, int), 'selections': 1},
    {'other': np.ones((2, 4), int), 'selections': 1},
    {'heads': np.ones((2, 4)), 'selections': 1},  # no integers
    {'heads': np.array([[None]]), 'selections': 1},  # would need pickle
  ],
)
def test_other_visits_are_refused(visits, tmp_path):
  path = write(tmp_path / 'run', records(2, rates=(0.0,)), visits=visits)
  with pytest.raises(errors.DataError, match='visits.npz'):
    tables([path])


def test_an_output_that_can_not_be_written_is_an_error(runs, tmp_path):
  (tmp_path / 'file').write_text('')
  for out in (tmp_path / 'file' / 'report.html', tmp_path):
    with pytest.raises(errors.StorageError, match='cannot write'):
      report(runs[2:], out)


def test_only_plots_need_matplotlib(runs, tmp_path):
  """In a process where it cannot be imported, as if it were not there."""
  script = f"""
import sys
from satjax import errors
from satjax.lab.report import page
runs = {[str(path) for path in runs]!r}
assert 'jax' not in sys.modules and 'matplotlib' not in sys.modules
content = page.read(runs)
assert 'tokens/s' in page.tables(content)
assert 'matplotlib' not in sys.modules
sys.modules['matplotlib'] = None
try:
  page.report(content, {str(tmp_path / 'x.html')!r})
except errors.ConfigError as error:
  assert "'.[viz]'" in str(error)
else:
  raise AssertionError
"""
  subprocess.run([sys.executable, '-c', script], check=True)
  assert not (tmp_path / 'x.html').exists()


def test_losses_of_nothing_are_no_numbers_of_a_report(tmp_path, recwarn):
  """Null at steps of which nothing is learned: skipped, and no word of NaN."""
  lines = sparse()
  for record in lines[1:9]:
    record['train/loss'] = None
  lines.insert(9, {'step': 8, 'growth/loss_before': None})
  none = [x | {'train/loss': None} for x in records(20, rates=(0.0,))[1:]]
  paths = [write(tmp_path / 'some', lines), write(tmp_path / 'none', none)]
  out = tmp_path / 'report.html'
  report(paths, out)
  page = out.read_text() + tables(paths)
  assert not re.search(r'\bnan\b', page, re.I)
  found = runs_lib.read(paths)
  assert found[0].known('train/loss').tolist() == [
    2 + 4 / step for step in range(9, 21)
  ]
  assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
