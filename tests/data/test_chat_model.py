"""The chat template of a tokenizer: what is written, and what is learned."""

from collections import Counter
import json
import logging

import numpy as np
import pytest

from satjax import errors
from satjax.data import chat, tokenizers
from satjax.data.documents import Document, Message
from satjax.data.encode import Encoder
from tests.data import chat_samples, subword_samples

START, STOP, THINK = 258, 259, 260  # after the bytes, begin and end of text
TURNS = (
  Message('user', 'One?'),
  Message('assistant', 'Yes.'),
  Message('user', 'Two?'),
  Message('assistant', 'No.'),
)
CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content']"
  " + '<|im_end|>' + '\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HELPFUL = (
  '{% if messages[0].role != "system" %}'
  '{{ "<|im_start|>system\\nBe helpful.<|im_end|>\\n" }}{% endif %}'
)


def byte_like(folder, template=None, files=(), begins=None, **settings):
  """A tokenizer of bytes with the markers of ChatML, and no begin of text."""
  folder.mkdir(parents=True, exist_ok=True)
  described = json.loads(tokenizers.ByteTokenizer().files()['tokenizer.json'])
  described['post_processor'] = None
  last = described['added_tokens'][-1]
  for number, name in enumerate(('<|im_start|>', '<|im_end|>'), START):
    described['added_tokens'].append(last | {'id': number, 'content': name})
  if begins is not None:
    added = {t['content']: t['id'] for t in described['added_tokens']}
    around = subword_samples.beginning(begins, added[begins])
    described['post_processor'] = around
  (folder / 'tokenizer.json').write_text(json.dumps(described))
  config = {'bos_token': None, 'eos_token': '<|im_end|>'} | settings
  if template is not None:
    config['chat_template'] = template
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  for name, content in files:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
  return tokenizers.get_tokenizer(f'hf:{folder}')


def ids(*parts):
  """Texts as bytes, and markers."""
  return [n for p in parts for n in (p.encode() if isinstance(p, str) else [p])]


def encode(encoder, turns, counts=None, **more):
  (found,) = encoder([Document('a', '', messages=tuple(turns), **more)], counts)
  return found


def learned(encoder, turns, counts=None, **more):
  """Texts of the stretches that are learned, markers by name."""
  found = encode(encoder, turns, counts, **more)
  texts, before = [], False
  for number, is_learned in zip(found.tokens.tolist(), found.is_trained):
    if is_learned and not before:
      texts.append('')
    if is_learned:
      is_text = encoder.tokenizer.id_bytes[number] > 0
      decode = encoder.tokenizer.decode if is_text else encoder.tokenizer.token
      texts[-1] += decode([number] if is_text else number)
    before = is_learned
  return texts


def test_ids_and_what_is_learned(tmp_path):
  encoder = Encoder(byte_like(tmp_path, HELPFUL + CHATML))
  found = encode(encoder, TURNS[:2])
  expected = ids(
    *(
      START,
      'system\nBe helpful.',
      STOP,
      '\n',
      START,
      'user\nOne?',
      STOP,
      '\n',
    ),
    *(START, 'assistant\n', 'Yes.', STOP, '\n'),
  )
  assert found.tokens.tolist() == expected
  assert np.flatnonzero(found.is_trained).tolist() == [
    *range(len(expected) - 6, len(expected) - 1)
  ]
  assert encoder.stop_id == STOP
  asked = encoder.prompt(TURNS[:3])
  own = Message('system', 'Hm.')
  assert asked.tolist() == ids(
    *expected, START, 'user\nTwo?', STOP, '\n', START, 'assistant\n'
  )
  assert encode(encoder, [own, *TURNS]).tokens.tolist()[:11] == ids(
    START, 'system\nHm.'
  )


@pytest.mark.parametrize('name', chat_samples.TEMPLATES)
def test_answers_and_ends_of_turns_are_learned(tmp_path, name):
  encoder = Encoder(chat_samples.load(tmp_path, name))
  stop = encoder.chat.stop
  found = learned(encoder, TURNS)
  if name == 'qwen3':  # of the last answer also what it was thought with
    assert found.pop() == f'<think>\n\n</think>\n\nNo.{stop}'
    found.append(f'No.{stop}')
  if name in ('llama2', 'mistral'):
    found = [text.replace(' ', '') for text in found]
  assert found == [f'Yes.{stop}', f'No.{stop}']


def test_a_generation_mark_says_what_is_learned(tmp_path):
  """The end of turn is learned with it, even if it stands outside."""
  encoder = Encoder(byte_like(tmp_path, chat_samples.GENERATION))
  assert learned(encoder, TURNS) == ['Yes.<|im_end|>', 'No.<|im_end|>']
  turns = (TURNS[0], TURNS[1]._replace(counts=False), *TURNS[2:])
  assert learned(encoder, turns) == ['No.<|im_end|>']


def test_without_a_mark_nothing_is_learned_where_a_template_has_them(tmp_path):
  """It marks the last answer, and here somebody else speaks last."""
  last = "m.role == 'assistant' and loop.last"
  template = chat_samples.GENERATION.replace("m.role == 'assistant'", last)
  encoder, counts = Encoder(byte_like(tmp_path, template)), Counter()
  assert learned(encoder, TURNS) == ['No.<|im_end|>']
  assert learned(encoder, TURNS[:3], counts) == []
  assert counts['unlearned'] == 1


def test_headings_of_an_answer_that_comes_first_are_not_learned(tmp_path):
  """As Zephyr's: the prompt is written inside of the loop over the turns."""
  inside = CHATML.replace('{% endfor %}', '').replace(
    'if add_generation_prompt', 'if loop.last and add_generation_prompt'
  )
  turns = (Message('assistant', 'Hey.'), *TURNS[:2])
  for number, template in enumerate((CHATML, inside + '{% endfor %}')):
    encoder = Encoder(byte_like(tmp_path / str(number), template))
    first = [] if number else ['Hey.<|im_end|>']
    counts = Counter()
    assert learned(encoder, turns, counts) == [*first, 'Yes.<|im_end|>']
    assert counts['unclear'] == number


@pytest.mark.parametrize('template', ['model', 'chatml'])
def test_what_does_not_count_is_not_learned(tmp_path, template):
  encoder = Encoder(byte_like(tmp_path, CHATML), template)
  turns = (*TURNS[:3], TURNS[3]._replace(counts=False))
  assert learned(encoder, turns) == ['Yes.<|im_end|>']
  whole = encode(encoder, turns).tokens.tolist()
  assert whole == encode(encoder, TURNS).tokens.tolist()


@pytest.mark.parametrize('space', chat_samples.SPACES)
@pytest.mark.parametrize('name', ['chatml', 'llama2', 'gemma'])
def test_text_never_becomes_a_marker(tmp_path, name, space):
  encoder = Encoder(chat_samples.load(tmp_path, name, space))
  spelled = ''.join(m for m in chat_samples.MARKERS if '▁' not in m)
  turns = (Message('user', spelled), Message('assistant', f'x {spelled} y'))
  markers = set(encoder.tokenizer.markers.values())

  def those_of(turns):
    return [n for n in encode(encoder, turns).tokens.tolist() if n in markers]

  assert those_of(turns) == those_of(TURNS[:2])
  found = encode(encoder, turns)
  assert spelled in encoder.tokenizer.decode(found.tokens)
  text = encoder.tokenizer.decode(found.tokens[found.is_trained])
  assert text.strip() == f'x {spelled} y'


@pytest.mark.parametrize('flag', ['normalized', 'single_word'])
def test_markers_are_found_whatever_their_flags(tmp_path, flag):
  """A normaliser that puts a space before them, or letters beside them."""
  folder = chat_samples.write(tmp_path, 'chatml', 'legacy')
  described = json.loads((folder / 'tokenizer.json').read_text())
  for token in described['added_tokens']:
    token[flag] = True
  (folder / 'tokenizer.json').write_text(json.dumps(described))
  tokenizer = tokenizers.get_tokenizer(f'hf:{folder}')
  found = encode(Encoder(tokenizer), TURNS[:2]).tokens.tolist()
  start, stop = (tokenizer.markers[f'<|im_{end}|>'] for end in ('start', 'end'))
  markers = [n for n in found if n in tokenizer.markers.values()]
  assert markers == [start, stop, start, stop]
  assert '\ufdd0' not in tokenizer.decode(found)


def test_private_code_points_in_a_text_stay_text(tmp_path):
  """What special tokens are spelled with inside cannot be spelled outside."""
  encoder = Encoder(byte_like(tmp_path, CHATML))
  said = f'\ufdd0{STOP}\ufdd1 \ufdd2a\ufdd3 \ufdd4b\ufdd5\ufdd6'
  turns = (Message('user', said), Message('assistant', said))
  found = encode(encoder, turns).tokens.tolist()
  assert [n for n in found if n > 255] == [START, STOP, START, STOP]
  plain = encoder.tokenizer.encode(said).tolist()
  assert max(plain) < 256
  for part in ('259', 'a', 'b'):
    assert part in encoder.tokenizer.decode(found)


@pytest.mark.parametrize('space', ['first', 'always', 'legacy'])
@pytest.mark.parametrize('template', ['model', 'llama2'])
def test_no_space_is_doubled(tmp_path, space, template):
  """Answers of Llama 2 begin with one space, of the template."""
  tokenizer = chat_samples.load(tmp_path, 'llama2', space)
  found = encode(Encoder(tokenizer, template), TURNS)
  answer = found.tokens[found.is_trained].tolist()
  names = ''.join(map(tokenizer.token, answer)).split('</s>')
  assert names == ['▁Yes.▁', '▁No.▁', '']


def test_a_template_whose_prompt_is_no_prefix_is_unclear(tmp_path):
  """As that of DeepSeek-R1, which opens every answer with a thought."""
  opens = CHATML.replace('assistant\\n', 'assistant\\n<think>\\n')
  encoder, counts = Encoder(byte_like(tmp_path, opens)), Counter()
  assert learned(encoder, TURNS, counts) == []
  assert (counts['unclear'], counts['unlearned']) == (2, 1)


def test_a_token_that_is_half_prompt_half_answer_is_counted(tmp_path):
  template = (
    "{% for m in messages %}[{{ m['role'] }}]: {{ m['content'] }}"
    '{{ eos_token }}{% endfor %}{% if add_generation_prompt %}'
    '[assistant]: {% endif %}'
  )
  folder = chat_samples.write(tmp_path, 'chatml', chat_template=template)
  encoder = Encoder(tokenizers.get_tokenizer(f'hf:{folder}'))
  counts = Counter()
  turns = (Message('user', 'a'), Message('assistant', 'the'))
  (first, *_) = learned(encoder, turns, counts)
  assert first == ' the<|im_end|>' and counts['shared'] == 1


def test_templates_that_lead_nowhere_are_explained(tmp_path):
  no_end = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"
  encoder = Encoder(byte_like(tmp_path / 'a', no_end))
  with pytest.raises(errors.DataError, match=r"'a': .*no special token after"):
    encode(encoder, TURNS)
  encoder = Encoder(chat_samples.load(tmp_path / 'b', 'gemma'))
  with pytest.raises(
    errors.DataError, match="'a': .*System role not supported"
  ):
    encode(encoder, (Message('system', 'x'), *TURNS))
  with pytest.raises(errors.ConfigError, match='is no Jinja'):
    _ = Encoder(byte_like(tmp_path / 'c', '{% for %}')).stop_id
  with pytest.raises(errors.ConfigError, match="no chat template 'default'"):
    _ = Encoder(byte_like(tmp_path / 'd'), 'model').stop_id


def test_a_template_runs_in_a_sandbox(tmp_path):
  steals = "{{ ''.__class__.__mro__[1].__subclasses__() }}" + CHATML
  with pytest.raises(errors.DataError, match='unsafe'):
    encode(Encoder(byte_like(tmp_path, steals)), TURNS)


def test_where_templates_lie(tmp_path):
  """In the settings, one or several; files of their own hide them."""
  named = [
    {'name': 'default', 'template': CHATML},
    {'name': 'tool_use', 'template': 'tools' + CHATML},
  ]
  tokenizer = byte_like(tmp_path, named)
  assert set(tokenizer.chat_templates) == {'default', 'tool_use'}
  encoder = Encoder(tokenizer)
  document = Document('a', '', messages=TURNS, tools=({'name': 'f'},))
  (found,) = encoder([document])
  assert tokenizer.decode(found.tokens).startswith('tools')
  assert tokenizer.decode(encode(encoder, TURNS).tokens).startswith('user')
  only = Encoder(tokenizer, 'model:tool_use')
  assert tokenizer.decode(encode(only, TURNS).tokens).startswith('tools')
  with pytest.raises(errors.ConfigError, match="'rag'; it has default, tool"):
    _ = Encoder(tokenizer, 'model:rag').stop_id
  files = [
    ('chat_template.jinja', 'file' + CHATML),
    ('additional_chat_templates/rag.jinja', 'rag' + CHATML),
  ]
  tokenizer = byte_like(tmp_path, named, files)
  assert set(tokenizer.chat_templates) == {'default', 'rag'}
  assert tokenizer.chat_templates['default'].startswith('file')


def test_auto_is_the_own_template_or_plain(tmp_path):
  own = Encoder(byte_like(tmp_path / 'a', CHATML))
  assert own.chat.identity.startswith('model:') and own.chat.source == CHATML
  assert Encoder(byte_like(tmp_path / 'b')).chat.identity == 'plain'


def test_a_built_in_template_is_the_own_one_of_its_form(tmp_path, caplog):
  """The own one adds what the model knows, such as a default system turn."""
  chat._say.cache_clear()
  tokenizer = byte_like(tmp_path, HELPFUL + CHATML)
  with caplog.at_level(logging.WARNING, 'absl'):
    found = [Encoder(tokenizer, 'chatml').prompt(TURNS[:1]) for _ in range(2)]
  np.testing.assert_array_equal(*found)
  np.testing.assert_array_equal(
    found[0], Encoder(tokenizer, 'model').prompt(TURNS[:1])
  )
  (said,) = caplog.messages
  assert 'is of that form and is used' in said and 'system' in said


def test_a_built_in_template_that_differs_is_said_once(tmp_path, caplog):
  chat._say.cache_clear()
  tokenizer = byte_like(tmp_path, CHATML)
  with caplog.at_level(logging.WARNING, 'absl'):
    for _ in range(2):
      encoder = Encoder(tokenizer, 'alpaca')
      text = tokenizer.decode(encode(encoder, TURNS).tokens)
  assert text.startswith('Below is an instruction')
  (said,) = caplog.messages
  assert "'alpaca'" in said and 'at character 0' in said


@pytest.mark.parametrize('template', ['chatml', 'llama3', 'alpaca', 'plain'])
def test_nothing_begins_a_text_that_the_tokenizer_leaves_bare(
  tmp_path, template
):
  begin = '<|begin_of_text|>'
  bare = byte_like(tmp_path / 'a', bos_token=begin)
  adds = byte_like(tmp_path / 'b', bos_token=begin, begins=begin)
  first, second = (
    encode(Encoder(tokenizer, template), TURNS).tokens.tolist()
    for tokenizer in (bare, adds)
  )
  assert second == [256, *first] and 256 not in first
  texts = [Encoder(t)([Document('a', 'ab')])[0].tokens for t in (bare, adds)]
  assert texts[0].tolist() == ids('ab', STOP)
  assert texts[1].tolist() == ids(256, 'ab', STOP)
  assert tokenizers.begun(bare, '').tolist() == [STOP]
  assert tokenizers.begun(adds, 'a').tolist() == ids(256, 'a')


def test_a_begin_that_the_template_writes_is_not_doubled(tmp_path):
  start = '<|im_start|>'
  begins = byte_like(tmp_path, bos_token=start, begins=start)
  found = encode(Encoder(begins, 'chatml'), TURNS).tokens.tolist()
  assert found[:2] == ids(START, 'u')


CALL = {'tool_calls': [{'function': {'name': 'f', 'arguments': {}}}]}


def test_tools_need_a_template_that_knows_them(tmp_path):
  turns = (
    TURNS[0],
    Message('assistant', '', fields=CALL),
    Message('tool', 'sunny'),
    TURNS[3],
  )
  knows = Encoder(chat_samples.load(tmp_path / 'a', 'qwen2.5'))
  first, second = learned(knows, turns)
  assert '"f"' in first and first.endswith('</tool_call><|im_end|>')
  assert second == 'No.<|im_end|>'
  plain = Encoder(byte_like(tmp_path / 'b', CHATML), 'alpaca')
  for some, what in ((turns, 'tool_calls'), (turns[::2] + turns[3:], 'tool')):
    with pytest.raises(errors.DataError, match=what):
      encode(plain, some)


def test_calls_that_a_template_looks_for_beside_null_alone(tmp_path):
  """As DeepSeek's; beside a text it would lose them without a word."""
  template = CHATML.replace(
    "m['content']",
    "(m['content'] if m['content'] is not none else m['tool_calls'][0]"
    "['function']['name'])",
  )
  encoder = Encoder(byte_like(tmp_path, template))
  assert learned(
    encoder, (TURNS[0], Message('assistant', '', fields=CALL))
  ) == ['f<|im_end|>']
  with pytest.raises(errors.DataError, match='tool_calls, which the template'):
    encode(encoder, (TURNS[0], Message('assistant', 'x', fields=CALL)))


def test_texts_that_a_template_leaves_out_or_changes_are_counted(tmp_path):
  tokenizer = chat_samples.load(tmp_path / 'a', 'mistral')
  for encoder, turns, expected in (
    (Encoder(tokenizer), (Message('system', 'Be brief.'), *TURNS), 1),
    (Encoder(tokenizer), TURNS, 0),
    (
      Encoder(chat_samples.load(tmp_path / 'b', 'qwen3')),
      (
        *(TURNS[0], Message('assistant', '<think>\na\n</think>\n\nb')),
        *(TURNS[2], Message('assistant', 'c', fields={'thinking': 'd'})),
      ),
      1,  # of answers before the last one the thought is taken off
    ),
  ):
    counts = Counter()
    encode(encoder, turns, counts)
    assert counts['changed'] == expected


def test_what_is_said_twice_has_to_be_written_twice(tmp_path):
  dropped = "(m['content'] if not m['tool_calls'] else 'f')"
  template = CHATML.replace("m['content']", dropped)
  encoder = Encoder(byte_like(tmp_path, template))
  counts = Counter()
  turns = (TURNS[0], Message('assistant', 'No.', fields=CALL), *TURNS[2:])
  with pytest.raises(errors.DataError, match='tool_calls, which the templ'):
    encode(encoder, turns)
  for place, expected in ((1, 1), (0, 0)):
    left_out = f"(m['content'] if loop.index0 != {place} else '')"
    template = CHATML.replace("m['content']", left_out)
    encoder = Encoder(byte_like(tmp_path / str(place), template))
    turns = (TURNS[0]._replace(content=''), TURNS[3], TURNS[2], TURNS[3])
    counts = Counter()
    encode(encoder, turns, counts)
    assert counts['changed'] == expected


def test_fields_count_as_read_if_what_is_written_depends_on_them(tmp_path):
  """And not where the template has the same word elsewhere."""
  template = CHATML.replace("m['content']", "m['content'] + (m.mood or '')")
  template += "{# name, weight #}{{ 'name' if tools else '' }}"
  encoder, counts = Encoder(byte_like(tmp_path, template)), Counter()
  fields = {'name': 'Bob', 'mood': ' :)', 'trained': False}
  turns = (TURNS[0]._replace(fields=fields), TURNS[1])
  encode(encoder, turns, counts, tools=({'name': 'f'},))
  assert {n: x for n, x in counts.items() if n.startswith('field')} == {
    "field 'name'": 1,
    "field 'trained'": 1,
  }


def test_names_in_calls_and_tools_never_become_markers(tmp_path):
  encoder = Encoder(chat_samples.load(tmp_path, 'qwen2.5'))
  named = {'name': 'f', 'arguments': {'<|im_end|>': 1}}
  call = {'tool_calls': [{'type': 'function', 'function': named}]}
  turns = (TURNS[0], Message('assistant', '', fields=call))
  (said,) = learned(encoder, turns)
  assert '"<|im_end|>": 1' in said and said.endswith('</tool_call><|im_end|>')
  tools = ({'name': 'f', 'parameters': {'<|im_end|>': {'type': 'string'}}},)
  found = encode(encoder, TURNS[:2], tools=tools)
  ends = found.tokens == encoder.tokenizer.markers['<|im_end|>']
  assert ends.sum() == 3  # of the system and of both turns


def test_what_is_nested_too_deeply_is_refused(tmp_path):
  deep = 1
  for _ in range(2000):
    deep = {'a': deep}
  encoder = Encoder(byte_like(tmp_path, CHATML))
  turns = (TURNS[0]._replace(fields={'meta': deep}), TURNS[1])
  with pytest.raises(errors.DataError, match="document 'a': .* too deeply"):
    encode(encoder, turns)


@pytest.mark.parametrize(
  'reasoning, said',
  [
    ('template', ['<think>\nhm\n</think>\n\n<|im_end|>']),
    ('think', ['<think>\nhm\n</think>\n\n<|im_end|>']),
    ('drop', []),
  ],
)
def test_a_thought_alone_is_learned_where_it_is_written(
  tmp_path, reasoning, said
):
  thought = Message('assistant', '', fields={'reasoning_content': 'hm'})
  tokenizer = chat_samples.load(tmp_path, 'qwen3')
  encoder = Encoder(tokenizer, 'model', reasoning)
  assert learned(encoder, (TURNS[0], thought)) == said
  if reasoning == 'template':
    assert learned(Encoder(tokenizer, 'alpaca'), (TURNS[0], thought)) == []


def test_reasoning_by_option(tmp_path):
  thought = Message('assistant', 'yes', fields={'reasoning_content': 'hm'})
  turns = (TURNS[0], thought)
  tokenizer = chat_samples.load(tmp_path, 'qwen3')
  texts = {
    (template, reasoning): learned(
      Encoder(tokenizer, template, reasoning), turns
    )
    for template in ('model', 'alpaca')
    for reasoning in chat.REASONING
  }
  in_tags, stop = '<think>\nhm\n</think>\n\nyes', '<|im_end|>'
  assert texts == {
    ('model', 'template'): [in_tags + stop],
    ('model', 'think'): [in_tags + stop],
    ('model', 'drop'): [f'<think>\n\n</think>\n\nyes{stop}'],
    ('alpaca', 'template'): ['yes' + stop],
    ('alpaca', 'think'): [in_tags + stop],
    ('alpaca', 'drop'): ['yes' + stop],
  }
  counts = Counter()
  encode(Encoder(tokenizer, 'alpaca'), turns, counts)
  assert counts["field 'reasoning_content'"] == 1


def test_an_empty_prompt_keeps_its_template(tmp_path):
  encoder = Encoder(byte_like(tmp_path, CHATML))
  turns = Message('user', ''), Message('assistant', 'x')
  (found,) = encoder([Document('a', messages=turns)])
  assert found.tokens.tolist() == ids(
    *(START, 'user\n', STOP, '\n', START, 'assistant\nx', STOP, '\n')
  )
