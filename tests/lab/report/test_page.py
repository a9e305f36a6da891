"""One HTML file of results: all of it is there, and it needs nothing else."""

import html
import json
import re

import pytest

from satjax import cli
from satjax.lab.report import page as page_lib
from satjax.lab.report import result_tables, results
from tests.lab.report import samples


def write(path, *values):
  content = page_lib.Content([], [results.check(value) for value in values], [])
  page_lib.report(content, path)
  return path.read_text()


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  path = tmp_path_factory.mktemp('page') / 'x.html'
  return write(path, samples.sat(), samples.growth())


def rows(text, title, number=0):
  """Cells by label of the table under a heading."""
  section = text.split(f'>{title}</h')[number + 1].split('</table>')[0]
  found = {}
  for row in re.findall(r'<tr>(.*?)</tr>', section, re.S):
    cells = re.findall(r'<t[hd][^>]*>(.*?)</t[hd]>', row, re.S)
    words = [re.sub('<(?!br)[^>]*>', '', cell) for cell in cells]
    label, *rest = (html.unescape(w.replace('<br>', '\n')) for w in words)
    found[label] = rest
  return found


def test_a_narrow_screen_scrolls_tables_alone(page):
  assert 'content="width=device-width' in page
  tables = page.split('<table')[:-1]
  assert tables and all(
    x.endswith('class="wide" tabindex="0">') for x in tables
  )
  panels = re.findall(r'<div style="([^"]*)"', page)
  shrinks = r'flex: [\d.]+ 1 [\d.]+px; max-width: [\d.]+px'
  assert panels and all(re.fullmatch(shrinks, look) for look in panels)
  assert not re.findall(r'<(?:img|input)\b', page)
  assert 'pre { white-space: pre-wrap; }' in page


def test_the_table_has_every_arm(page):
  table = rows(page, 'Arms')
  assert list(table) == [
    *('arm', 'dense', 'ladder', 'rate <b>0.5</b> | x', 'rate 0.25', 'rate 0.9'),
    *('other', 'constant'),
    *('dense, other lengths', 'dense, 50% of the steps'),
  ]
  arm = dict(zip(table['arm'], table['rate <b>0.5</b> | x']))
  assert arm == {
    'loss': '2.0400, best step',
    'lowest to highest seed': '2.0360 to 2.0450',
    'at equal steps': 'worse: +0.0200\n(+0.0160 to +0.0250)',
    'at equal time': 'better: -0.0200\n(-0.0240 to -0.0150)',
    'at equal FLOPs': 'no difference: +0.0000\n(-0.0040 to +0.0050)',
    'speed-up in time': '+20.0%',
    'speed-up in FLOPs': 'not reached',
    'learning rate': '0.002\nat the edge of the search',
    'steps': '400',
    'FLOPs': '8.40e+11',
    'seconds': '28.0',
    'omission rate': '50.0%',
    'parameters': '1,130,000',
  }
  assert table['rate 0.9'][0] == 'failed: the loss is NaN at step 17'
  assert not any(table['rate 0.9'][1:] + table['ladder'])
  assert '<span class="better">better</span>: -0.0200' in page
  assert '</strong>: <span class="holds">holds</span>.' in page


def test_figures_of_the_paper_stand_beside_ours(page):
  table = rows(page, 'Arms', 1)
  stack = dict(zip(table['arm'], table['stack']))
  assert stack['loss'] == '1.9800' and stack['paper: loss'] == '2.151'
  assert stack['paper: speed-up'] == '+49.1%'
  assert dict(zip(table['arm'], table['zero']))['paper: loss'] == ''
  assert table['learn'][0] == 'failed: it is not supported (paper: loss 2.2)'
  assert 'seconds' not in stack and 'at equal time' not in stack


def test_hops_say_when_the_loss_was_back(page):
  table = rows(page, 'Growth')
  assert table['stack, hop 1'] == ['40', '4.1000', '4.4000', '12']
  assert table['zero, hop 1'][-1] == 'not yet'


def test_claims_of_all_come_first(page):
  claims, *_ = page.partition('id="e0"')
  assert '<h1>Claims</h1>\n<p>holds 2, not tested 2.</p>' in claims
  assert claims.count('<strong>a claim that holds</strong>: ') == 2
  links = re.findall(r'<a href="#(e\d)">([^<]*)</a>', page)
  assert links == [('e0', 'What sat does'), ('e1', 'What growth does')]
  assert all(f'id="{target}"' in page for target, _ in links)


def test_one_seed_has_no_range():
  one = {'against': {'steps': samples.against(2.02, 0.02, 'one seed')}}
  one['against']['steps']['difference'] = dict.fromkeys(
    ('mean', 'low', 'high'), 0.02
  )
  value = samples.result({'x': samples.arm(2.04, **one)}, seeds=[0])
  for arm in value['arms'].values():
    arm['runs'] = arm['runs'][:1]
  table = result_tables.arms(results.check(value))
  assert 'lowest to highest seed' not in table.columns
  (row,) = (row for row in table.rows if row[0] == 'x')
  assert row[1:3] == ['2.0400', 'one seed: +0.0200']


def test_one_experiment_needs_no_contents_and_gives_equal_bytes(tmp_path):
  value = samples.growth()
  text = write(tmp_path / 'a', value)
  assert '<h1>Claims' not in text and text.count('a claim that holds') == 1
  assert text == write(tmp_path / 'b', value)


def test_names_are_escaped_and_nothing_is_loaded(page):
  assert 'rate &lt;b&gt;0.5&lt;/b&gt; | x' in page and '<b>' not in page
  assert '<script' not in page and '@import' not in page
  links = re.findall(r'(?:src|srcset|href|url)[=(]"?([^")]*)', page)
  assert links and all(x.startswith('#') for x in links) and '//' not in page
  ids = re.findall(r' id="([^"]*)"', page)
  assert len(set(ids)) == len(ids)


def test_pictures_and_their_legends_name_the_arms(page):
  shown = dict.fromkeys(re.findall(r'role="img" aria-label="([^"]*)', page))
  assert list(shown) == [
    *('Loss and cost', 'Loss by arm', 'Loss over rate'),
  ]
  legend = page.split('aria-label="Loss and cost"')[3].split('</svg>')[0]
  names = re.findall(r'<text [^>]*> (.*?)</text>', legend)
  assert names == [
    'dense, by length',
    *('rate &lt;b&gt;0.5&lt;/b&gt; | x', 'rate 0.25', 'constant'),
  ]


def test_the_docstring_has_terms(page):
  assert '<p>What is asked?</p>' in page
  assert '<p><strong>Claim.</strong> one that goes on here.</p>' in page


def test_the_command_writes_page_plots_and_claims(tmp_path, capsys):
  file = tmp_path / 'x.json'
  value = samples.result({}, 'growth', claims=[samples.claim('holds')])
  file.write_text(samples.json.dumps(value))
  out = tmp_path / 'out'
  out.mkdir()
  options = [f'--out={out}', f'--plots={out}', f'--page={out}/results.md']
  assert cli.main(['report', str(file), *options]) == 0
  said = capsys.readouterr().out
  assert said.startswith('# What growth does\n\na claim that holds: holds (')
  names = sorted(path.name for path in out.iterdir())
  assert names == sorted(
    [
      *('report.html', 'results.md'),
      *(
        f'growth_x_{name}.{end}'
        for name in ('loss_and_cost',)
        for end in ('png', 'svg')
      ),
    ]
  )
  assert all(f'wrote {out / name}' in said for name in names)


def test_the_page_of_claims_has_experiments_that_have_not_run(tmp_path):
  file, out = tmp_path / 'x.json', tmp_path / 'out.md'
  claims = [samples.claim('holds')]
  value = samples.result({}, claims=claims) | {'name': 'sat_where'}
  file.write_text(samples.json.dumps(value))
  ran, other = 'experiments/sat_where.py', 'experiments/growth_gradual.py'
  assert cli.main(['report', str(file), ran, other, f'--page={out}']) == 0
  text = out.read_text()
  assert 'holds 1, not tested 1' in text
  assert '### Gradual growth' in text and f'(../{other})' in text
  assert 'one hop ends below doubling twice' in text and f'../{ran}' not in text


def test_an_experiment_file_is_for_the_page_of_claims(capsys):
  assert cli.main(['report', 'experiments/sat_where.py']) == 78
  assert 'sat_where.py' in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--plots', '--page'])
def test_plots_and_claims_are_of_results(option, tmp_path, capsys):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
  code = cli.main(['report', str(tmp_path), f'{option}={tmp_path / "x"}'])
  assert code == 78 and 'result file' in capsys.readouterr().err


def test_a_report_is_not_written_over_what_is_no_page(tmp_path, capsys):
  file = tmp_path / 'result.json'
  file.write_text(json.dumps(samples.sat()))
  before = file.read_bytes()
  assert cli.main(['report', str(file), f'--out={file}']) == 78
  assert 'a report is HTML' in capsys.readouterr().err
  assert file.read_bytes() == before


def test_what_a_result_says_is_text_and_no_page(tmp_path):
  """Names with ends of lines, fences, tags and links, wherever they stand."""
  evil = 'x\n\n```\r\r<script>1</script> "><img src=x> [l](http://a.b)'
  arms = {evil: samples.arm(2.0), 'b': samples.arm(2.1)}
  value = samples.result(arms, claims=[samples.claim('holds')])
  value['environment']['command'] = ['satjax', evil]
  value['claims'][0]['claim'] = value['doc'] = evil
  file = tmp_path / 'x.json'
  file.write_text(samples.json.dumps(value))
  page_lib.report(page_lib.read([file]), tmp_path / 'x.html')
  text = (tmp_path / 'x.html').read_text()
  assert '<svg' in text and '<table>' in text
  for tag in ('<script', '<img', 'href="http'):
    assert tag not in text
