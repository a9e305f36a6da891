"""metrics.jsonl survives restarts; the clock accounts for every second."""

import json
import math
import struct
import time

import pytest

from satjax import errors
from satjax.train import metrics


def write(workdir, step, *records):
  writer = metrics.Writer(workdir, step)
  for record in records:
    writer.write(record)
  writer.close()


def lines(workdir):
  return (workdir / 'metrics.jsonl').read_text().splitlines()


def test_records_come_back_in_order(tmp_path):
  records = [{'step': s, 'train/loss': 5.0 - s, 'tokens': s} for s in (1, 2)]
  write(tmp_path, 0, *records)
  assert metrics.read(tmp_path) == records
  assert len(lines(tmp_path)) == 2
  assert list((tmp_path / 'tensorboard').iterdir())


def test_a_folder_without_metrics_has_no_records(tmp_path):
  assert metrics.read(tmp_path) == []
  assert metrics.read(tmp_path / 'nowhere') == []


def test_every_line_is_on_disk_before_the_next(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  for step in (1, 2, 3):
    writer.write({'step': step})
    assert [r['step'] for r in metrics.read(tmp_path)] == [*range(1, step + 1)]
  writer.close()


def test_resuming_drops_the_steps_that_will_happen_again(tmp_path):
  # Two records of step 2: training and evaluation.
  first = [{'step': s} for s in (1, 2, 2, 3, 4)]
  write(tmp_path, 0, *first)
  write(tmp_path, 2, {'step': 3, 'train/loss': 1.0})
  assert metrics.read(tmp_path) == [
    {'step': 1},
    {'step': 2},
    {'step': 2},
    {'step': 3, 'train/loss': 1.0},
  ]


def test_resuming_after_the_last_line_drops_nothing(tmp_path):
  write(tmp_path, 0, {'step': 1}, {'step': 2})
  write(tmp_path, 5, {'step': 6})
  assert [r['step'] for r in metrics.read(tmp_path)] == [1, 2, 6]


@pytest.mark.parametrize('step', [None, 0])
def test_a_run_without_a_checkpoint_has_no_line_twice(tmp_path, step):
  write(tmp_path, None, {'step': 0, 'eval/a/loss': 2.0}, {'step': 1})
  write(tmp_path, step, {'step': 1})
  # A checkpoint of step 0 is one beside growth: it has seen the evaluation.
  first = [] if step is None else [{'step': 0, 'eval/a/loss': 2.0}]
  assert metrics.read(tmp_path) == [*first, {'step': 1}]


def shown(workdir):
  """What TensorBoard shows: (step, value) by name, in the order of files."""
  from tensorboardX.proto import event_pb2

  found = {}
  for path in sorted((workdir / 'tensorboard').iterdir()):
    content = path.read_bytes()
    while content:
      (size,) = struct.unpack('<Q', content[:8])
      event = event_pb2.Event.FromString(content[12 : 12 + size])
      content = content[16 + size :]
      if event.session_log.status == event_pb2.SessionLog.START:
        for points in found.values():
          points[:] = [p for p in points if p[0] < event.step]
      for value in event.summary.value:
        found.setdefault(value.tag, []).append((event.step, value.simple_value))
  return {name: points for name, points in found.items() if points}


def test_tensorboard_is_rewound_with_the_lines(tmp_path):
  def record(step, loss, **more):
    return {'step': step, 'train/loss': loss, **more}

  evaluated = {'step': 2, 'eval/a/loss': 4.0}
  write(tmp_path, None, *(record(s, 1.0) for s in (1, 2)), evaluated)
  write(
    tmp_path, None, *(record(s, 2.0) for s in (1, 2)), evaluated, record(3, 2.0)
  )
  assert shown(tmp_path) == {
    'train/loss': [(1, 2.0), (2, 2.0), (3, 2.0)],
    'eval/a/loss': [(2, 4.0)],
  }
  write(tmp_path, 2, record(3, 3.0))
  assert shown(tmp_path) == {
    'train/loss': [(1, 2.0), (2, 2.0), (3, 3.0)],
    'eval/a/loss': [(2, 4.0)],
  }
  lines = [r for r in metrics.read(tmp_path) if 'train/loss' in r]
  assert [(r['step'], r['train/loss']) for r in lines] == (
    shown(tmp_path)['train/loss']
  )


@pytest.mark.parametrize(
  'torn', ['{"step": 3, "tra', '{"step": 3', '{', '\0\0']
)
def test_a_torn_last_line_is_left_out_and_repaired(tmp_path, torn):
  write(tmp_path, 0, {'step': 1}, {'step': 2})
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write(torn)
  assert [r['step'] for r in metrics.read(tmp_path)] == [1, 2]
  write(tmp_path, 2, {'step': 3})
  assert [json.loads(line)['step'] for line in lines(tmp_path)] == [1, 2, 3]


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(tmp_path, value):
  write(tmp_path, 0, {'step': 1, 'train/loss': value, 'tokens': 2})
  # Strict JSON knows no NaN.
  (line,) = lines(tmp_path)
  record = json.loads(line, parse_constant=pytest.fail)
  assert record == {'step': 1, 'train/loss': None, 'tokens': 2}


def test_a_log_that_can_not_be_written_is_a_storage_error(tmp_path):
  (tmp_path / 'metrics.jsonl').mkdir()
  with pytest.raises(errors.StorageError, match=str(tmp_path)):
    metrics.Writer(tmp_path, 0)


@pytest.fixture
def now(monkeypatch):
  """A time that passes when the test says so."""
  seconds = [100.0]
  monkeypatch.setattr(time, 'perf_counter', lambda: seconds[0])

  def wait(more):
    seconds[0] += more

  return wait


def test_totals_sum_to_the_age_of_the_clock(now):
  clock = metrics.Clock()
  now(1.0)
  with clock('data'):
    now(2.0)
  now(4.0)
  with clock('compile'):
    now(8.0)
  with clock('data'):
    now(16.0)
  totals = clock.totals()
  assert totals == {'step': 5.0, 'data': 18.0, 'compile': 8.0}
  now(32.0)
  assert clock.totals()['step'] == 37.0
  assert sum(clock.totals().values()) == 63.0


def test_an_activity_that_fails_took_its_time(now):
  clock = metrics.Clock()
  with pytest.raises(KeyError), clock('data'):
    now(3.0)
    raise KeyError
  assert clock.totals() == {'step': 0.0, 'data': 3.0}


def test_a_new_clock_counts_steps_only(now):
  clock = metrics.Clock()
  now(2.0)
  assert clock.totals() == {'step': 2.0}


@pytest.mark.parametrize('which', ['lines', 'events'])
def test_a_log_without_room_is_a_storage_error(tmp_path, which):
  writer = metrics.Writer(tmp_path, 0)
  if which == 'lines':
    writer._file.close()
    writer._file = open('/dev/full', 'a')  # noqa: SIM115
  else:
    writer._board.file_writer.event_writer._worker.stop()
  with pytest.raises(errors.StorageError, match='cannot write metrics'):
    writer.write({'step': 1, 'train/loss': 1.0})
