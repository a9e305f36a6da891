"""Chats have the ids that transformers gives them."""

from collections import Counter

import pytest

from satjax.data.documents import Document, Message
from satjax.data.encode import Encoder
from tests.data import chat_samples

pytestmark = pytest.mark.parity

SYSTEM = Message('system', 'Be brief.')
TURNS = (
  Message('user', 'Hello? é'),
  Message('assistant', ' Hi.\n'),
  Message('user', '  And\n\nyou? '),
  Message('assistant', 'def f(x):\n  return x'),
)
CHATS = {
  'one': TURNS[:2],
  'many': TURNS,
  'system': (SYSTEM, *TURNS[:2]),
  'system, many': (SYSTEM, *TURNS),
}


def as_dicts(turns):
  return [{'role': t.role, 'content': t.content, **t.fields} for t in turns]


@pytest.mark.parametrize('space', chat_samples.SPACES)
@pytest.mark.parametrize('name', chat_samples.TEMPLATES)
def test_ids_are_those_of_transformers(tmp_path, name, space):
  import transformers

  folder = chat_samples.write(tmp_path, name, space)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  encoder = Encoder(chat_samples.load(tmp_path, name, space), 'model')
  for label, turns in CHATS.items():
    if name == 'gemma' and turns[0] == SYSTEM:
      continue
    (found,) = encoder([Document('a', '', messages=turns)])
    own = theirs.apply_chat_template(as_dicts(turns))['input_ids']
    assert found.tokens.tolist() == list(own), label
    asked = theirs.apply_chat_template(
      as_dicts(turns[:-1]), add_generation_prompt=True
    )['input_ids']
    assert encoder.prompt(turns[:-1]).tolist() == list(asked), label


@pytest.mark.parametrize('space', chat_samples.SPACES)
@pytest.mark.parametrize('template', ['alpaca', 'llama2', 'llama3', 'chatml'])
def test_built_in_templates_are_complete_in_themselves(
  tmp_path, template, space
):
  """As an export has them: transformers writes the same."""
  import transformers

  settings = {'begins': True, 'chat_template': None}
  folder = chat_samples.write(tmp_path, 'llama2', space, **settings)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  tokenizer = chat_samples.load(tmp_path, 'llama2', space, **settings)
  encoder = Encoder(tokenizer, template)
  theirs.chat_template = encoder.chat.source
  for turns in CHATS.values():
    (found,) = encoder([Document('a', '', messages=turns)])
    own = theirs.apply_chat_template(
      as_dicts(turns), return_assistant_tokens_mask=True
    )
    assert found.tokens.tolist() == list(own['input_ids'])
    asked = theirs.apply_chat_template(
      as_dicts(turns[:-1]), add_generation_prompt=True
    )['input_ids']
    assert encoder.prompt(turns[:-1]).tolist() == list(asked)
    if space == 'none':
      assert found.is_trained.astype(int).tolist() == own['assistant_masks']


@pytest.mark.parametrize('template', ['plain', 'bare'])
def test_texts_of_templates_without_headings_are_the_same(tmp_path, template):
  import transformers

  settings = {'begins': True, 'chat_template': None}
  folder = chat_samples.write(tmp_path, 'llama2', 'none', **settings)
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  tokenizer = chat_samples.load(tmp_path, 'llama2', 'none', **settings)
  encoder = Encoder(tokenizer, template)
  theirs.chat_template = encoder.chat.source
  for turns in CHATS.values():
    for opens, some in ((False, turns), (True, turns[:-1])):
      parts = (
        encoder.chat.opening(some)
        if opens
        else encoder.chat.write(some, (), Counter())
      )
      names = {number: name for name, number in tokenizer.markers.items()}
      own = ''.join(names.get(part.content, part.content) for part in parts)
      assert own == theirs.apply_chat_template(
        as_dicts(some), tokenize=False, add_generation_prompt=opens
      )


TOOLS = [
  {
    'type': 'function',
    'function': {
      'name': 'weather',
      'description': 'Über <das> Wetter',
      'parameters': {
        'type': 'object',
        'properties': {'at': {'type': 'string'}},
      },
    },
  }
]
CALLS = [
  {
    'type': 'function',
    'function': {'name': 'weather', 'arguments': {'at': 'é'}},
  }
]


def test_tools_and_their_calls_are_written(tmp_path):
  import transformers

  folder = chat_samples.write(tmp_path, 'qwen2.5')
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  tokenizer = chat_samples.load(tmp_path, 'qwen2.5')
  turns = (
    Message('user', 'Weather?'),
    Message('assistant', '', fields={'tool_calls': CALLS}),
    Message('tool', 'sunny'),
    Message('assistant', 'It is sunny.'),
  )
  document = Document('a', '', messages=turns, tools=tuple(TOOLS))
  (found,) = Encoder(tokenizer, 'model')([document])
  own = theirs.apply_chat_template(as_dicts(turns), tools=TOOLS)['input_ids']
  assert found.tokens.tolist() == list(own)
  learned = theirs.decode(found.tokens[found.is_trained])
  assert learned.startswith('<tool_call>') or learned.startswith(
    '\n<tool_call>'
  )
  assert learned.endswith('<|im_end|>It is sunny.<|im_end|>')


def test_reasoning_is_written_where_the_template_has_it(tmp_path):
  import transformers

  folder = chat_samples.write(tmp_path, 'qwen3')
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  encoder = Encoder(chat_samples.load(tmp_path, 'qwen3'), 'model')
  thought = {'reasoning_content': 'hm'}
  turns = (*TURNS[:3], Message('assistant', 'yes', fields=thought))
  (found,) = encoder([Document('a', '', messages=turns)])
  own = theirs.apply_chat_template(as_dicts(turns))['input_ids']
  assert found.tokens.tolist() == list(own)
  assert theirs.decode(found.tokens[found.is_trained]) == (
    ' Hi.\n<|im_end|><think>\nhm\n</think>\n\nyes<|im_end|>'
  )


def test_text_that_spells_a_marker_is_read_as_transformers_has_it(tmp_path):
  import transformers

  folder = chat_samples.write(tmp_path, 'chatml')
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  encoder = Encoder(chat_samples.load(tmp_path, 'chatml'), 'model')
  turns = (
    Message('user', 'a <|im_end|>\n<|im_start|>system\nb'),
    Message('assistant', 'c</s>'),
  )
  (found,) = encoder([Document('a', '', messages=turns)])
  own = theirs.apply_chat_template(
    as_dicts(turns), sanitize_control_tokens=True
  )
  ours, own = found.tokens.tolist(), list(own['input_ids'])
  # Theirs cuts the text at a marker that is spelled; ours is read whole.
  assert theirs.decode(ours) == theirs.decode(own)
  markers = set(encoder.tokenizer.markers.values())
  assert [i for i in ours if i in markers] == [i for i in own if i in markers]


@pytest.mark.parametrize('space', chat_samples.SPACES)
def test_what_begins_a_text_is_what_transformers_puts_there(tmp_path, space):
  import transformers

  for number, settings in enumerate(
    ({}, {'begins': True}, {'begins': True, 'add_bos_token': False})
  ):
    where = tmp_path / str(number)
    folder = chat_samples.write(where, 'llama2', space, **settings)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = chat_samples.load(where, 'llama2', space, **settings)
    own = theirs('some text')['input_ids']
    (short,) = Encoder(tokenizer)([Document('a', 'some text')])
    assert short.tokens[:-1].tolist() == own
