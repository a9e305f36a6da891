"""Documents are found again, exactly or nearly, and no others."""

import random

import pytest

from satjax.data import duplicates
from satjax.data.documents import Document, Message

WORDS = [f'w{i}' for i in range(3000)]


def text(seed, size=400):
  return random.Random(seed).choices(WORDS, k=size)


def turns(prompt, answer):
  said = Message('user', prompt), Message('assistant', answer)
  return Document('id', messages=said)


def changed(words, count, seed=1):
  """Some words replaced, far from each other."""
  words, draw = list(words), random.Random(seed)
  step = len(words) // count
  for i in range(count):
    words[i * step + draw.randrange(step // 2)] = f'new{i}'
  return words


def document(words, sep=' '):
  return Document('id', sep.join(words))


def share(keys, one, other):
  return bool(set(keys(one)) & set(keys(other)))


def jaccard(one, other):
  a, b = (
    {tuple(x[i : i + 5]) for i in range(len(x) - 4)} for x in (one, other)
  )
  return len(a & b) / len(a | b)


def test_all_are_kept_without_keys():
  assert duplicates.finder('keep') is None


def test_exact_is_the_words():
  keys = duplicates.finder('exact')
  assert share(keys, document(['a', 'b']), document(['a', 'b', ''], '\n\t'))
  for other in (['a', 'B'], ['ab'], ['a'], ['b', 'a'], []):
    assert not share(keys, document(['a', 'b']), document(other))


@pytest.mark.parametrize('rule', ['exact', 'near'])
def test_prompts_and_turns_count(rule):
  keys = duplicates.finder(rule)
  pair = turns('a', 'b c')
  assert share(keys, pair, pair._replace(id='other', group='g'))
  assert not share(keys, pair, turns('a b', 'c'))
  assert not share(keys, turns('a', 'b'), document(['a', 'b']))


def test_near_finds_what_is_nearly_the_same():
  """The chance at similarity s is 1 - (1 - s**13)**9."""
  keys = duplicates.finder('near')
  found = {}
  for count, expected in ((1, 0.99), (4, 0.9), (9, 0.4), (40, 0.0)):
    hits = []
    for seed in range(60):
      words = text(seed)
      other = changed(words, count, seed)
      if not seed:
        found[count] = jaccard(words, other)
      hits.append(share(keys, document(words), document(other)))
    similarity = found[count]
    chance = 1 - (1 - similarity**13) ** 9
    assert abs(sum(hits) / 60 - chance) < 0.2, (similarity, expected)


def test_near_ignores_case_and_white_space_only():
  keys = duplicates.finder('near')
  words = text(0)
  upper = document([word.upper() for word in words], '\n ')
  assert keys(document(words)) == keys(upper)
  assert not share(keys, document(words), document(text(1)))


@pytest.mark.parametrize('size', [0, 1, 4, 5, 6])
def test_near_of_few_words(size):
  keys = duplicates.finder('near')
  words = text(2, size)
  assert len(set(keys(document(words)))) == 9
  assert share(keys, document(words), document(words))
  assert not share(keys, document(words), document([*words, 'more']))
  assert not share(keys, document(words), document(text(3, size + 1)))


def test_near_is_the_library_alone(monkeypatch):
  """The same keys at once, or some runs at a time."""
  words = document(text(4, 3000))
  whole = duplicates.finder('near')(words)
  monkeypatch.setattr(duplicates, '_RUNS_AT_A_TIME', 100)
  assert duplicates.finder('near')(words) == whole


@pytest.mark.parametrize('rule', ['exact', 'near'])
def test_lone_surrogates_have_keys(rule):
  keys = duplicates.finder(rule)
  assert not share(keys, document(['\ud800']), document(['\ufffd']))
