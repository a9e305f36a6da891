"""Result files: found, checked; what is wrong is named."""

import json

import pytest

from satjax import errors
from satjax.lab.report import page, results
from tests.lab.report import samples

ARM = ('arms', 'rate 0.25')


def write(path, value):
  text = value if isinstance(value, str) else json.dumps(value)
  path.write_text(text)
  return path


@pytest.mark.parametrize(
  'path',
  [
    ('name',),
    ('arms',),
    ('claims',),
    ('paper', 'rows'),
    ('environment', 'packages'),
    ('claims', 0, 'verdict'),
    ('claims', 0, 'comparisons', 0, 'change'),
    ('arms', 'stack', 'loss'),
    ('arms', 'stack', 'loss', 'mean'),
    ('arms', 'stack', 'speedup'),
    ('arms', 'stack', 'growth', 0, 'steps_to_recover'),
    ('arms', 'learn', 'group'),
  ],
)
def test_a_missing_key_is_named_with_the_file(path, tmp_path):
  file = write(tmp_path / 'x.json', samples.without(samples.growth(), path))
  with pytest.raises(errors.DataError) as caught:
    page.read([file])
  message = str(caught.value)
  assert str(file) in message
  assert f'{".".join(map(str, path))} is missing' in message


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    (('family',), 'other', "family is 'other', not 'sat' | 'growth'"),
    (('title',), None, 'title is None, not a text'),
    (('seeds',), [0.5], 'seeds.0 is 0.5, not a whole number'),
    (('arms', 'dense'), [], 'arms.dense is [], not an object'),
    ((*ARM, 'loss', 'low'), '2', "rate 0.25.loss.low is '2', not a number"),
    ((*ARM, 'steps'), True, 'steps is True, not a whole number'),
    ((*ARM, 'at_edge'), 1, 'at_edge is 1, not true or false'),
    ((*ARM, 'loss'), None, 'loss is None, not an object'),
    ((*ARM, 'runs'), 3, 'runs is 3, not a list'),
    (('claims', 0, 'verdict'), 'yes', "claims.0.verdict is 'yes'"),
    (('arms',), {}, 'arms.dense is missing'),
  ],
)
def test_a_wrong_value_is_named(path, value, message, tmp_path):
  changed = samples.replaced(samples.sat(), path, value)
  with pytest.raises(errors.DataError) as caught:
    page.read([write(tmp_path / 'x.json', changed)])
  assert message in str(caught.value)


@pytest.mark.parametrize(
  'text', ['', '{', '[1]', 'null', '{"name": NaN}', '[' * 100000]
)
def test_broken_files_are_refused(text, tmp_path):
  file = write(tmp_path / 'x.json', text)
  with pytest.raises(errors.DataError, match='x.json'):
    page.read([file])


def test_files_that_can_not_be_read_are_an_error(tmp_path):
  (tmp_path / 'x.json').write_bytes(b'\xff\xfe')
  with pytest.raises(errors.DataError, match='x.json cannot be used as a res'):
    page.read([tmp_path / 'x.json'])
  with pytest.raises(errors.StorageError, match='none.json'):
    page.read([tmp_path / 'none.json'])


# Whatever may be null, by sample: everything that cannot be shown then.
NULLS = [
  (samples.sat, ('process_seconds',)),
  (samples.sat, ('timing',)),
  (samples.sat, ('timing', 'noise')),
  (samples.sat, ('environment', 'commit')),
  (samples.sat, ('claims', 0, 'paper')),
  *(
    (samples.sat, (*ARM, key))
    for key in ('learning_rate', 'seconds', 'omission_rate', 'parameters')
  ),
  (samples.sat, (*ARM, 'search', '0.001')),
  (samples.sat, (*ARM, 'runs', 0, 'test')),
  (samples.sat, ('arms', 'dense', 'seconds')),
  (samples.sat, ('arms', 'rate <b>0.5</b> | x', 'against', 'time')),
  (samples.sat, ('arms', 'rate <b>0.5</b> | x', 'speedup', 'time')),
  (samples.by_length, ('arms', 'dense', 'seconds')),
  (samples.growth, ('paper',)),
  (samples.growth, ('paper', 'rows', 'stack', 0)),
  *(
    (samples.growth, ('arms', 'stack', 'growth', 0, key))
    for key in ('loss_before', 'loss_after', 'steps_to_recover')
  ),
]


def test_null_is_fine_wherever_it_is_allowed(tmp_path):
  """All at once, the innermost first; on the page, too."""
  values = {
    make: make() for make in (samples.sat, samples.growth, samples.by_length)
  }
  for make, path in sorted(NULLS, key=lambda null: -len(null[1])):
    values[make] = samples.replaced(values[make], path, None)
  content = page.Content([], list(map(results.check, values.values())), [])
  page.report(content, tmp_path / 'x.html')
  for text in (page.tables(content), (tmp_path / 'x.html').read_text()):
    assert 'rate 0.25' in text and 'stack' in text
    assert 'None' not in text and 'nan' not in text


@pytest.mark.parametrize(('make', 'path'), NULLS)
def test_each_null_is_fine(make, path):
  found = results.check(samples.replaced(make(), path, None))
  assert page.tables(page.Content([], [found], []))


def test_keys_that_are_not_known_are_let_pass():
  value = samples.replaced(samples.sat(), ('environment', 'cpu_count'), 4) | {
    'later': 1
  }
  assert results.check(value)['later'] == 1


@pytest.mark.parametrize('name', ['dense', 'dense, 50% of the steps'])
def test_a_reference_that_is_missing_is_named(name):
  value = samples.without(samples.sat(), ('arms', name))
  with pytest.raises(errors.DataError, match=f'arms.{name} is missing'):
    results.check(value)


def test_paths_are_runs_files_or_folders_of_files(tmp_path):
  write(tmp_path / 'b.json', samples.sat())
  write(tmp_path / 'a.json', samples.growth())
  (tmp_path / 'deep').mkdir()
  write(tmp_path / 'deep' / 'c.json', '{')  # of something else
  content = page.read([tmp_path])
  assert [r['family'] for r in content.results] == ['growth', 'sat']
  (tmp_path / 'run').mkdir()
  write(tmp_path / 'run' / 'metrics.jsonl', '{"step": 1}\n')
  write(tmp_path / 'run' / 'config.json', '{}')
  content = page.read([tmp_path / 'b.json', tmp_path / 'run'])
  assert len(content.results) == len(content.runs) == 1
  text = page.tables(content)
  assert '# What sat does' in text and 'results' in text
  with pytest.raises(errors.ConfigError, match='each once'):
    page.read([tmp_path, tmp_path / 'a.json'])


def test_a_run_that_has_recorded_nothing_yet_is_no_result(tmp_path):
  write(tmp_path / 'config.json', {'model': {}})
  with pytest.raises(errors.ConfigError, match=r'it has no metrics\.jsonl'):
    page.read([tmp_path])


def test_the_workdir_of_experiments_names_its_results(tmp_path):
  folder = tmp_path / 'results' / 'cpu'
  folder.mkdir(parents=True)
  file = write(folder / 'x.json', samples.sat())
  assert results.find(tmp_path) == [file]
