"""Results as Markdown: tables that are whole, verdicts where they belong."""

import pathlib
import re

import markdown_it
import pytest

from satjax.lab.report import markdown, table
from tests.lab.report import samples


def tables(text):
  """The tables of a page as lists of rows of text, as GitHub reads them."""
  tokens = markdown_it.MarkdownIt('commonmark').enable('table').parse(text)
  found = []
  for token, inner in zip(tokens, tokens[1:]):
    if token.type == 'table_open':
      found.append([])
    elif token.type == 'tr_open':
      found[-1].append([])
    elif token.type in ('td_open', 'th_open'):
      words = ''.join(
        '\n' if child.type == 'html_inline' else child.content
        for child in inner.children
      )
      found[-1][-1].append(words)
  return found


@pytest.mark.parametrize('make', [samples.sat, samples.growth])
def test_tables_are_whole(make):
  value = make()
  text = markdown.markdown(value)
  for block in re.findall(r'(?:^\|.*\n)+', text, re.M):
    lines = block.splitlines()
    bars = {len(re.findall(r'(?<!\\)\|', line)) for line in lines}
    assert len(lines) > 2 and len(bars) == 1
  found = tables(text)
  claims, arms = found[0], next(t for t in found if t[0][1] == 'loss')
  labels = [row[0] for row in arms]
  assert set(value['arms']) <= set(labels)
  assert claims[0] == ['arm', 'against', 'change']
  assert len(claims) == 2


def test_cells_say_what_the_arms_did():
  *_, arms = tables(markdown.markdown(samples.sat()))
  by_label = {row[0]: dict(zip(arms[0], row)) for row in arms}
  arm = by_label['rate <b>0.5</b> | x']
  assert arm['loss'] == '2.0400, best step'
  assert arm['at equal steps'] == 'worse: +0.0200\n(+0.0160 to +0.0250)'
  assert arm['learning rate'] == '0.002\nat the edge of the search'
  assert by_label['rate 0.9']['loss'] == 'failed: the loss is NaN at step 17'


def test_a_page_says_where_it_is_from():
  picture = markdown.image(pathlib.Path('plots/sat_x_loss_and_cost.png'))
  text = markdown.markdown(samples.sat(), [picture])
  assert text.startswith('# What sat does\n\nGenerated; do not edit.')
  assert 'satjax experiment experiments/x.py --scale=cpu' in text
  assert '**Claim.** one that goes on here.' in text
  assert '![sat x loss and cost](sat_x_loss_and_cost.png)' in text
  notes = text.split('## Notes')[1]
  for words in (
    '3 seeds: 0, 1, 2',
    'among 0.0005, 0.001, 0.002',
    'run for 200, 400 steps',
    'read off between two, linear',
    'Two equal arms differ by 1.2%',
    '1.50 hours',
    '1 x cpu, 2 CPUs, Linux',
    'Commit abc1234, Python 3.11.7, jax 0.10.2',
  ):
    assert words in notes


def test_growth_has_its_hops_and_no_seconds():
  text = markdown.markdown(samples.growth())
  assert '| stack, hop 1 | 40 | 4.1000 | 4.4000 | 12 |' in text
  assert 'Nothing was timed' in text and 'training from scratch' in text


def test_the_page_of_results_groups_verdicts():
  verdicts = ['holds', 'holds partly', 'not tested']
  claims = list(map(samples.claim, verdicts))
  values = [samples.growth(), samples.sat(claims=claims)]
  text = markdown.results_page(values)
  assert 'holds 2, holds partly 1, not tested 2.' in text
  sat, growth = (
    text.index(f'\n## {family}\n')
    for family in ('Sparsity-accelerated training', 'Model growth')
  )
  assert sat < text.index('### What sat does') < growth
  assert growth < text.index('### What growth does')
  assert re.findall(r'^\*\*a claim that .*\*\*: (.*?)\.', text, re.M) == [
    *verdicts,
    *(claim['verdict'] for claim in values[0]['claims']),
  ]
  assert '*SAT, table 3.* Published: better.\n' in text
  for each in tables(text):  # short enough for a phone
    head, row = each
    assert head == ['arm', 'against', 'change']
    assert row[2] == 'worse\n+0.0200 (+0.0160 to +0.0250)'
  links = re.findall(r'\]\(([^)]*)\)', text)
  assert links == [
    f'../experiments/results/{name}_x.{end}'
    for name in ('sat', 'growth')
    for end in ('md', 'json')
  ]
  rest = text.split('## What was not tested')[1]
  assert "The papers' own sizes" in rest
  assert '- What sat does: a claim that not tested\n' in rest
  assert '- What sat does: rate 0.9 failed: the loss is NaN' in rest
  assert 'counted in FLOPs: What growth does.\n' in rest


def test_at_the_size_of_the_papers_nobody_says_otherwise():
  text = markdown.results_page([samples.sat(scale='paper')])
  assert "The papers' own sizes" not in text


def test_text_is_taken_as_it_stands():
  words = 'a|b *c* _d_ `e` [f](g) <b> & \\| \n h'
  (found,) = tables(table.markdown(table.Table('', ['x', 'y'], [[words, '']])))
  assert found[1] == [' '.join(words.split()), '']


def test_what_an_experiment_adds_and_how_it_was_timed_is_noted():
  timing = {'noise': 0.012, 'cores': 1}
  value = samples.sat(notes=['stack: L = 7 C^-0.05'], timing=timing)
  notes = markdown.markdown(value).partition('## Notes')[2]
  assert 'stack: L = 7 C^-0.05' in notes
  assert 'Measured on 1 of the CPU cores.' in notes


def test_lines_of_a_cell_are_lines_of_the_page():
  text = table.markdown(table.Table('', ['x', 'y'], [['a', 'b;\n<c>']]))
  assert text.splitlines()[-1] == '| a | b;<br>&lt;c&gt; |'


def test_arms_by_length_say_when_they_are_as_good_as_the_reference():
  text = markdown.markdown(samples.by_length())
  assert '## Time to the same loss' in text
  found = dict((row[0], row[1:]) for row in tables(text)[-1][1:])
  assert found == {'muon': ['14.3', '2.80\n(2.70 to 2.90)']}
  # The longest of them stands for all.
  head, *_ = tables(markdown.results_page([samples.by_length()]))[0]
  assert head == ['', 'muon, 100%', 'slow, 100%']


def test_the_page_begins_with_what_to_take_and_what_to_leave():
  """Not to do is what is worse, and what failed; not what is fourth."""
  value = samples.sat(answers='Fine-tuning')
  more = {
    name: samples.arm(
      2.0,
      cost=0.5,
      against={'time': samples.against(2.0, x, verdict)},
      speedup={'time': None, 'flops': None},
    )
    for name, x, verdict in (
      ('a', -0.9, 'better'),
      ('b', -0.8, 'better'),
      ('d', -0.01, 'no difference'),
      ('e', 0.3, 'worse'),
      ('f', 0.2, 'worse'),
    )
  }
  value['arms'] |= more
  text = markdown.results_page([samples.growth(), value])
  heads = ('Fine-tuning', 'Sparsity-accelerated training')
  first, then = (text.index(f'\n## {head}\n') for head in heads)
  assert first < text.index('What not to do, the worst last:') < then
  assert first < text.index('\nFailed: rate 0.9.\n') < then
  (head, *rows), (worst, *_) = tables(text)[:2]
  assert head == ['', 'a', 'b', 'rate <b>0.5</b> | x'] and worst == [
    '',
    'f',
    'e',
  ]
  cells = {name: of for name, *of in rows}
  assert cells['time saved a step'] == ['50%', '50%', '30%']
  assert cells['FLOPs saved a step'] == ['50%', '50%', '30%']
  assert cells['seeds'] == ['3'] * 3
  assert cells['learning rate'][2] == '0.002\nat the edge of the search'
  assert '+0.0200' in cells['loss at equal steps'][2]
  assert 'better: -0.0200' in cells['loss at equal time'][2]
  # Lower than any length of dense training, for half of the time.
  assert cells['speed-up in time'] == ['over +100.0%'] * 2 + ['+20.0%']


def test_a_page_without_anything_worse_or_compared_says_so():
  text = markdown.results_page([samples.sat(answers='Fine-tuning')])
  assert 'What not to do' not in text
  nothing = samples.sat(answers='Fine-tuning')
  nothing['arms']['rate <b>0.5</b> | x']['against'] = {}
  assert 'Nothing does: dense training is best.' in markdown.results_page(
    [nothing]
  )


@pytest.mark.parametrize(
  'words', ['~~~ x', '- x', '+ x', '1. x', '2) x', '# x', '## x', '---', '===']
)
def test_words_begin_no_block_of_markdown(words):
  tokens = markdown_it.MarkdownIt('commonmark').parse(
    f'before\n\n{table.escape(words)}\n\nafter\n'
  )
  kinds = [token.type for token in tokens]
  assert kinds == ['paragraph_open', 'inline', 'paragraph_close'] * 3
  (text,) = [
    ''.join(child.content for child in token.children) for token in tokens[4:5]
  ]
  assert text == words


@pytest.mark.parametrize('words', ['+1.5% (-0.2 to +3)', '0.5', '1.5 times'])
def test_figures_stay_as_they_are(words):
  assert table.escape(words) == words


def test_where_all_arms_failed_the_page_says_why():
  value = samples.sat()
  for arm in value['arms'].values():
    arm |= {'failed': 'too warm', 'loss': None, 'runs': [], 'against': {}}
  assert markdown.markdown(value).count('too warm') == len(value['arms'])


def test_what_was_not_compared_is_not_called_out_of_reach():
  value = samples.sat()
  for arm in value['arms'].values():
    arm |= {'against': {}, 'speedup': {}}
  assert '| not reached' not in markdown.markdown(value)
