"""Definitions become prompts, their docstrings answers."""

import ast
import json

import numpy as np
import pytest

from satjax.data import sources, stdlib, table, tokenizers
from satjax.data.encode import Encoder

SOURCE = '''
"""Of the module, which has no signature."""

def plain(a, b=1):
  """Adds.

  Twice:
    indented.
  """

def silent(a):
  pass

def blank():
  """   """

class Shape(Base, metaclass=Meta):
  """A shape."""

  @property
  async def area(
    self,
    *, unit: str = 'é'
  ) -> float:  # exactly
    \'\'\'Area.\'\'\'
    def hidden():
      """No."""

  class Inner:
    "Inner."

if True:
  def twice(first): "é" "First."
else:
  def twice(second):
    """Second."""
'''


def test_pairs_worked_by_hand():
  pairs = stdlib.pairs(SOURCE, ast.parse(SOURCE), 'm')
  assert pairs == {
    'm.plain': (
      'Write the docstring of m.plain.\n\ndef plain(a, b=1):\n',
      'Adds.\n\nTwice:\n  indented.',
    ),
    'm.Shape': (
      'Write the docstring of m.Shape.\n\nclass Shape(Base, metaclass=Meta):\n',
      'A shape.',
    ),
    'm.Shape.area': (
      'Write the docstring of m.Shape.area.\n\n'
      "async def area(\n  self,\n  *, unit: str = 'é'\n"
      ') -> float:  # exactly\n',
      'Area.',
    ),
    'm.Shape.Inner': (
      'Write the docstring of m.Shape.Inner.\n\nclass Inner:\n',
      'Inner.',
    ),
    'm.twice': (
      'Write the docstring of m.twice.\n\ndef twice(first):\n',
      'éFirst.',
    ),
  }


def test_columns_are_bytes_and_other_line_ends_are_none():
  source = 'def f(a="é\x0c\u2028é"): "Doc."\n'
  ((prompt, answer),) = stdlib.pairs(source, ast.parse(source), 'm').values()
  assert prompt == f'Write the docstring of m.f.\n\n{source[:-8]}\n'
  assert answer == 'Doc.'


def said(document):
  return [message.content for message in document.messages]


@pytest.fixture(scope='module')
def documents():
  return list(sources.documents('stdlib:docstrings'))


def test_stdlib_pairs_are_complete(documents):
  assert len(documents) > 1000
  for document in documents:
    file, name = document.id.split('#')
    assert document.group == file
    prompt, answer = said(document)
    first, blank, signature, *_, last = prompt.split('\n')
    assert first == f'Write the docstring of {name}.'
    assert (blank, last) == ('', '')
    words = ('def ', 'async def ', 'class ')
    assert signature.startswith(words)
    assert name.split('.')[-1] in signature
    assert answer.strip()
  ids = [document.id for document in documents]
  assert ids == sorted(ids)


def test_stdlib_pairs_are_the_source(documents):
  (dumps,) = (d for d in documents if d.id == 'json/__init__.py#json.dumps')
  prompt, answer = said(dumps)
  with open(json.__file__, encoding='utf-8') as file:
    assert prompt.split('\n\n', 1)[1] in file.read()
  assert answer.startswith('Serialize ``obj`` to a JSON formatted ``str``')
  assert answer == ast.get_docstring(
    ast.parse(f'def f():\n  """{json.dumps.__doc__}"""').body[0]
  )


def test_modules_are_held_out_whole_as_in_the_documentation(documents):
  docs = {document.id for document in sources.documents('stdlib:docs')}
  assert {document.group for document in documents} <= docs
  byte = tokenizers.get_tokenizer('byte')
  for split in table.SPLITS:
    built = table.build_table(
      'stdlib:docstrings', Encoder(byte), split=split, held_out=0.05, test=0.05
    )
    expected = [
      document
      for document in documents
      if table.split_of(document.group, 0.05, 0.05) == split
    ]
    assert len(expected) > 50
    assert byte.decode(built.tokens) == ''.join(
      ''.join(said(document)) for document in expected
    )
    lengths = [len(said(document)[0].encode()) + 1 for document in expected]
    trained = np.flatnonzero(built.is_trained)
    first = trained[np.searchsorted(trained, built.starts)]
    assert (first - built.starts).tolist() == lengths
