"""Records of others: what is read of them, and what is counted as unread."""

from collections import Counter
import functools
import json

import pytest

from satjax import cli, errors
from satjax.data import documents, pipeline, prepared, tokenizers
from satjax.data.documents import Message
from tests import models

TURNS = [
  {'role': 'user', 'content': 'hello'},
  {'role': 'assistant', 'content': 'hi'},
]
READ = (Message('user', 'hello'), Message('assistant', 'hi'))
CALLS = [{'type': 'function', 'function': {'name': 'f', 'arguments': '{}'}}]


def read(record, *columns):
  """The document of a record, and what is counted of it."""
  counts = Counter()
  found = documents.from_record(record, columns, 'x#1', 'x, line 1', counts)
  return found, dict(counts)


def answer(**more):
  return {'messages': [TURNS[0], {'role': 'assistant', 'content': 'hi'} | more]}


@pytest.mark.parametrize(
  'record',
  [
    {'messages': TURNS},
    {'messages': json.dumps(TURNS)},
    {'text': '', 'messages': TURNS},
    {'text': None, 'messages': TURNS},
    {'messages': None, 'conversations': TURNS},
    {'prompt': '', 'completion': '', 'messages': TURNS},
    {
      'messages': [
        {'role': 'user', 'content': [{'type': 'text', 'text': 'hel'}, 'lo']},
        TURNS[1] | {'tool_calls': None, 'weight': None},
      ]
    },
    {
      'conversations': [
        {'from': 'human', 'value': 'hello'},
        {'from': 'gpt', 'value': 'hi', 'weight': 1},
      ]
    },
    {
      'messages': [  # as a table has them whose rows differ in shape
        {'role': None, 'content': None, 'from': 'human', 'value': 'hello'},
        {'from': None, 'value': None} | TURNS[1],
      ]
    },
  ],
)
def test_chats_in_many_shapes(record):
  found, counts = read(record)
  assert found.messages == READ and counts == {}


def test_a_dialog_in_a_string_of_a_named_column():
  assert read({'own': json.dumps(TURNS)}, 'own')[0].messages == READ
  found, _ = read({'own': '[1] is a footnote'}, 'own')
  assert found.text == '[1] is a footnote'


def test_the_system_may_stand_beside_the_turns():
  system = Message('system', 'Be brief.')
  said = {'system': 'Be brief.'}
  shapes = (
    {'conversations': TURNS},
    {'messages': TURNS},
    {'instruction': 'hello', 'output': 'hi'},
  )
  for shape in shapes:
    found, counts = read(shape | said)
    assert found.messages == (system, *READ) and counts == {}
  inside = {'messages': [{'role': 'system', 'content': 'Hm.'}, *TURNS]}
  found, counts = read(inside | said)
  assert found.messages[0].content == 'Hm.'
  assert counts == {"field 'system'": 1}


def test_lists_of_messages_as_prompt_and_completion():
  """As TRL has them: what an assistant says in the prompt is only read."""
  asked = [*TURNS, {'role': 'user', 'content': 'and you?'}]
  record = {'prompt': asked, 'completion': [TURNS[1]]}
  for columns in ((), ('prompt', 'completion')):
    found, counts = read(record, *columns)
    assert [m.content for m in found.messages] == [
      'hello',
      'hi',
      'and you?',
      'hi',
    ]
    learned = [m.counts for m in found.messages if m.role == 'assistant']
    assert learned == [False, True] and counts == {}


@pytest.mark.parametrize(
  'record, counted',
  [
    ({'prompt': 'hello', 'completion': [TURNS[1]]}, {}),
    ({'prompt': [TURNS[0]], 'completion': 'hi'}, {}),
    ({'prompt': json.dumps(TURNS[:1]), 'answer': json.dumps(TURNS[1:])}, {}),
    (
      {'instruction': [TURNS[0]], 'input': 'a', 'output': [TURNS[1]]},
      {"field 'input'": 1},
    ),
    (
      {'prompt': [TURNS[0]], 'completion': 'hi', 'history': [['a', 'b']]},
      {"field 'history'": 1},
    ),
  ],
)
def test_one_side_of_a_pair_may_be_a_list(record, counted):
  found, counts = read(record)
  assert [m[:2] for m in found.messages] == [m[:2] for m in READ]
  assert found.messages[1].counts and counts == counted


@pytest.mark.parametrize('nothing', [None, '', []])
def test_a_pair_with_a_list_and_nothing(nothing):
  found, counts = read({'prompt': [TURNS[0]], 'completion': nothing})
  assert found is None and counts == {'empty': 1}
  found, counts = read({'prompt': nothing, 'completion': [TURNS[1]]})
  assert found.messages == READ[1:] and counts == {'empty_prompt': 1}


def test_what_was_said_before_is_held_to_the_same_rules():
  pairs = [['a', ''], ['', 'b']]
  empty = {'empty_prompt': 2, 'empty_answer': 1}
  for before in (pairs, json.dumps(pairs)):
    record = {'instruction': '', 'output': 'c', 'history': before}
    found, counts = read(record)
    assert counts == empty
    said = [m.counts for m in found.messages if m.role == 'assistant']
    assert said == [False, True, True]
  for before in ('User: hi', {'a': 'b'}, 3):
    found, counts = read({'prompt': 'a', 'answer': 'b', 'history': before})
    assert len(found.messages) == 2 and counts == {"field 'history'": 1}
  _, counts = read({'prompt': '', 'answer': 'b', 'system': 'c'})
  assert counts == {'empty_prompt': 1}


def test_what_lies_beside_a_text_in_its_part_is_counted():
  found, counts = read(answer(content=[{'text': 'hi', 'image': 'x.png'}]))
  assert found.messages == READ and counts == {"field 'image'": 1}


def test_calls_may_be_json():
  found, _ = read(answer(tool_calls=json.dumps(CALLS)))
  assert found.messages[1].fields['tool_calls'] == CALLS


def test_alpaca_with_a_history():
  found, counts = read(
    {
      'instruction': 'and',
      'input': 'you?',
      'output': 'yes',
      'history': [['hello', 'hi']],
    }
  )
  asked = Message('user', 'and\n\nyou?')
  assert found.messages == (*READ, asked, Message('assistant', 'yes'))
  assert counts == {}


def test_parts_of_an_instruction():
  def asked(**record):
    found, counts = read(record | {'output': 'x'})
    return found.messages[0].content, counts

  assert asked(instruction='a', input='b') == ('a\n\nb', {})
  assert asked(instruction='', input='b') == ('b', {})
  for empty in ('', None):
    assert asked(instruction='a', input=empty) == ('a', {})
  assert asked(instruction='a', input=3) == ('a', {"field 'input'": 1})


def test_calls_of_sharegpt():
  call = {'name': 'f', 'arguments': {}}
  turns = [
    {'from': 'human', 'value': 'hello'},
    {'from': 'function_call', 'value': json.dumps(call)},
    {'from': 'observation', 'value': 'sunny'},
    {'from': 'gpt', 'value': 'hi'},
  ]
  found, counts = read({'conversations': turns})
  calls = {'tool_calls': [{'type': 'function', 'function': call}]}
  assert found.messages == (
    READ[0],
    Message('assistant', '', fields=calls),
    Message('tool', 'sunny'),
    READ[1],
  )
  assert counts == {}
  turns[1]['value'] = 'f()'
  with pytest.raises(errors.DataError, match='message 2: .* is no message'):
    read({'conversations': turns})


def test_what_is_not_learned():
  (_, said), counts = (
    read(answer(weight=0))[0].messages,
    read(answer(weight=0))[1],
  )
  assert not said.counts and said.content == 'hi' and counts == {}
  for content, counted in (
    ('', {'empty_answer': 1}),
    (None, {'empty_answer': 1, 'null': 1}),
  ):
    found, counts = read(answer(content=content))
    assert not found.messages[1].counts and counts == counted
  found, counts = read(answer(content=None, tool_calls=CALLS))
  assert found.messages[1] == Message(
    'assistant', '', fields={'tool_calls': CALLS}
  )
  assert counts == {}


def test_tools_lie_beside_the_turns_as_a_list_or_as_json():
  tools = [{'type': 'function', 'function': {'name': 'f'}}]
  for value in (tools, json.dumps(tools), tools[0]):
    found, counts = read({'messages': TURNS, 'tools': value})
    assert found.tools == tuple(tools) and counts == {}


def test_empty_prompts_and_answers():
  found, counts = read({'prompt': '', 'completion': 'hello'})
  assert [m.content for m in found.messages] == ['', 'hello']
  assert counts == {'empty_prompt': 1}
  _, counts = read({'messages': [{'role': 'user', 'content': ''}, TURNS[1]]})
  assert counts == {'empty_prompt': 1}
  for record in (
    {'prompt': 'a', 'completion': ''},
    {'prompt': 'a', 'completion': None},
    {'text': None},
    {'messages': None},
    {'messages': ''},
  ):
    assert read(record) == (None, {'empty': 1})


def test_every_other_field_is_counted_by_name():
  _, counts = read({'messages': TURNS, 'id': 7, 'loss': False, 'note': None})
  assert counts == {"field 'id'": 1, "field 'loss'": 1}
  _, counts = read({'question': 'a', 'answer': 'b', 'hint': 'c'})
  assert counts == {"field 'hint'": 1}
  _, counts = read({'text': 'a', 'messages': TURNS, 'url': 'b'})
  assert counts == {"field 'messages'": 1}  # the others say nothing of it
  found, counts = read(answer(name='bot', train=False))
  assert found.messages[1].fields == {'name': 'bot', 'train': False}


@pytest.mark.parametrize(
  'record, message',
  [
    (answer(weight=0.5), 'message 2: weight 0.5; 1 is learned'),
    (
      answer(content=[{'type': 'image', 'url': 'x'}]),
      'message 2: .* is no mess',
    ),
    (answer(content=3), 'message 2: .*is no message'),
    ({'messages': 'hello'}, 'x, line 1: its "messages" is \'hello\'; write a'),
    ({'messages': [{'role': 'narrator', 'content': 'x'}]}, 'message 1: .*role'),
    ({'instruction': 'a', 'output': 'b', 'history': ['x']}, '"history" holds'),
    ({'messages': TURNS, 'tools': 'f'}, '"tools" is'),
    ({'prompt': ['x'], 'completion': TURNS}, 'message 1: .* is no message'),
    ({'prompt': TURNS, 'completion': 3}, 'message 3: .* is no message'),
    (
      {'messages': {'role': ['user', 'assistant'], 'content': ['a']}},
      "its lists 'role', 'content' differ in length",
    ),
    (answer(tool_calls='f()'), "'f\\(\\)'; write a list of objects"),
  ],
)
def test_records_that_cannot_be_read(record, message):
  with pytest.raises(errors.DataError, match=message):
    read(record)


def make(tmp_path, kind, lengths, **changes):
  """Batches of chats with prompts of some lengths, in rows of 64 bytes.

  A length below 0: nothing is learned of the answer.
  """
  chats = [
    [
      {'role': 'user', 'content': 'a' * abs(n)},
      {'role': 'assistant', 'content': 'yes', 'weight': int(n > 0)},
    ]
    for n in lengths
  ]
  lines = (json.dumps({'messages': chat}) for chat in chats)
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  source = f'jsonl:{tmp_path}/a.jsonl'
  if kind != 'files':
    out = tmp_path / f'table{len(list(tmp_path.iterdir()))}'
    run = ['prepare', f'--source={source}', f'--out={out}', '--template=bare']
    assert cli.main([*run, '--held_out=1e-9']) == 0
    source = f'tokens:{out}'
  if kind == 'older':
    make_older(out / prepared.NAME)
  settings = {'train': (source,), 'seq_len': 64, 'template': 'bare'}
  data = models.make_data(
    **settings | {'packing': 'best_fit', 'held_out': 1e-9} | changes
  )
  tokenizer = tokenizers.get_tokenizer(data.tokenizer)
  return pipeline.make_batches(
    data, split='train', batch_size=1, tokenizer=tokenizer, vocab_size=258
  )


def make_older(path):
  """The description of a table as it was before chats got their new line."""
  described = json.loads(path.read_text()) | {'format': 1}
  assert described['made_from']['template'] == 'bare'
  described['made_from']['template'] = 'plain'
  for part in described['parts']:
    for split in part['splits'].values():
      del split['num_unlearned']
  path.write_text(json.dumps(described))


@pytest.fixture(params=['files', 'prepared', 'older'])
def made(request, tmp_path):
  return functools.partial(make, tmp_path, request.param)


def test_documents_that_teach_nothing_are_counted(made, caplog):
  lengths = [10, 10, 100, -9, -100, 12]
  assert made(lengths).sources[0].num_unlearned == 3
  assert 'nothing is learned of 3 of 6 documents' in caplog.text
  whole = made(lengths, packing='concat_then_split')
  assert whole.sources[0].num_unlearned == 2


def test_they_are_refused_if_they_are_most(made):
  for lengths in ([10, 100, 100], [10, -9, -9], [10, 100, -9]):
    with pytest.raises(errors.DataError, match='of 2 of 3 .*seq_len 64.*keep'):
      made(lengths, unlearned='refuse')
    assert made(lengths).sources[0].num_unlearned == 2
  cut = made([10, 100, 100], unlearned='refuse', too_long='drop')
  assert cut.sources[0].num_unlearned == 0
