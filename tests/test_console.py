"""Progress that threads share, and tables."""

from concurrent import futures
import sys

from satjax import console


def test_threads_lose_nothing_of_what_they_did():
  bar = console.Progress('checksums', 80_000, quiet=True)
  old = sys.getswitchinterval()
  sys.setswitchinterval(1e-6)
  try:
    with futures.ThreadPoolExecutor(8) as pool:
      for _ in range(8):
        pool.submit(lambda: [bar.advance(1) for _ in range(10_000)])
  finally:
    sys.setswitchinterval(old)
  assert bar.done == bar.total


def test_lines_say_how_far_and_how_long(capsys):
  with console.Progress('step', 4, 1, counts=True, seconds_between=0) as bar:
    bar.advance(1, 'loss 2.5')
    bar.note('grown')
    bar.advance(2)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0].startswith('step 2/4  loss 2.5  ')
  assert lines[1] == 'grown'
  assert lines[2] == 'step 4/4  0 s left'


def test_lines_come_now_and_then_and_count_what_is_done(capsys):
  with console.Progress('read') as bar:
    advance = bar.start(200)
    for _ in range(4):
      advance(50)
  assert bar.done == 200
  assert capsys.readouterr().err == ''


def test_a_bar_knows_what_is_left_of_pieces_that_take_minutes(monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')  # as on a terminal
  bar, now = console.Progress('runs', 4), [0.0]
  monkeypatch.setattr(bar._bar, 'get_time', lambda: now[0])
  for _ in range(3):
    now[0] += 60
    bar.advance(1)
  assert bar._bar.tasks[0].time_remaining == 60


def test_a_table_of_markdown():
  assert console.markdown(['a', 'b'], [['x', '1']], right=True) == (
    '| a | b |\n| --- | ---: |\n| x | 1 |\n'
  )


def test_a_note_is_shown_as_it_is(capsys):
  text = "step 2  'def ': '[/b] [red]x[/red] :smile: text:[ab]*.txt'"
  with console.Progress('step', 4) as bar:
    bar.note(text)
  assert capsys.readouterr().err == f'{text}\n'
