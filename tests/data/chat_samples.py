"""Stand-ins for the chat templates of well-known models, and tokenizers.

They are written for the tests, in the manner of the originals: what they have
in common with them are the markers, and what they do to a conversation.
"""

import functools
import json

import tokenizers as library

from satjax.data import tokenizers
from tests.data import subword_samples

# Name of the bos_token (or None), of the eos_token, and the template.
TEMPLATES = {
  'chatml': (
    None,
    '<|im_end|>',
    '{% for message in messages %}\n'
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n' -}}\n"
    '{% endfor %}\n'
    '{% if add_generation_prompt %}\n'
    "    {{- '<|im_start|>assistant\\n' -}}\n"
    '{% endif %}\n',
  ),
  'smollm2': (
    '<|im_start|>',
    '<|im_end|>',
    '{% for message in messages %}{% if loop.first and messages[0]["role"] !='
    ' "system" %}{{ "<|im_start|>system\\nYou are a helper.<|im_end|>\\n" }}'
    '{% endif %}{{"<|im_start|>" + message["role"] + "\\n" +'
    ' message["content"] + "<|im_end|>" + "\\n"}}{% endfor %}'
    '{% if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}',
  ),
  'llama2': (
    '<s>',
    '</s>',
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set start = messages[0]['content'] %}{% else %}"
    '{% set rest = messages %}{% set start = false %}{% endif %}'
    '{% for message in rest %}'
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    '{% if loop.index0 == 0 and start != false %}'
    "{% set content = '<<SYS>>\\n' + start + '\\n<</SYS>>\\n\\n' +"
    " message['content'] %}{% else %}{% set content = message['content'] %}"
    "{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    '{% endfor %}',
  ),
  'llama3': (
    '<|begin_of_text|>',
    '<|eot_id|>',
    '{% set loop_messages = messages %}{% for message in loop_messages %}'
    "{% set content = '<|start_header_id|>' + message['role'] +"
    " '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}"
    '{% if loop.index0 == 0 %}{% set content = bos_token + content %}'
    '{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}'
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
  ),
  'mistral': (
    '<s>',
    '</s>',
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set start = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    '{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}'
    "{%- for message in rest %}{%- if message['role'] == 'user' %}"
    '{%- if loop.last and start is defined %}'
    "{{- '[INST] ' + start + '\\n\\n' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}"
    '{%- endfor %}',
  ),
  'qwen2.5': (
    None,
    '<|im_end|>',
    '{%- if tools %}\n'
    "    {{- '<|im_start|>system\\n' }}\n"
    "    {%- if messages[0]['role'] == 'system' %}\n"
    "        {{- messages[0]['content'] }}\n"
    '    {%- else %}\n'
    "        {{- 'You are made here.' }}\n"
    '    {%- endif %}\n'
    '    {{- "\\n\\n# Tools\\n<tools>" }}\n'
    '    {%- for tool in tools %}\n'
    '        {{- "\\n" }}\n'
    '        {{- tool | tojson }}\n'
    '    {%- endfor %}\n'
    '    {{- "\\n</tools><|im_end|>\\n" }}\n'
    '{%- else %}\n'
    "    {%- if messages[0]['role'] == 'system' %}\n"
    "        {{- '<|im_start|>system\\n' + messages[0]['content'] +"
    " '<|im_end|>\\n' }}\n"
    '    {%- else %}\n'
    "        {{- '<|im_start|>system\\nYou are made here.<|im_end|>\\n' }}\n"
    '    {%- endif %}\n'
    '{%- endif %}\n'
    '{%- for message in messages %}\n'
    '    {%- if (message.role == "user") or (message.role == "system" and not'
    ' loop.first) or (message.role == "assistant" and not message.tool_calls)'
    ' %}\n'
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content +"
    " '<|im_end|>' + '\\n' }}\n"
    '    {%- elif message.role == "assistant" %}\n'
    "        {{- '<|im_start|>' + message.role }}\n"
    '        {%- if message.content %}\n'
    "            {{- '\\n' + message.content }}\n"
    '        {%- endif %}\n'
    '        {%- for tool_call in message.tool_calls %}\n'
    '            {%- if tool_call.function is defined %}\n'
    '                {%- set tool_call = tool_call.function %}\n'
    '            {%- endif %}\n'
    '            {{- \'\\n<tool_call>\\n{"name": "\' }}\n'
    '            {{- tool_call.name }}\n'
    '            {{- \'", "arguments": \' }}\n'
    '            {{- tool_call.arguments | tojson }}\n'
    "            {{- '}\\n</tool_call>' }}\n"
    '        {%- endfor %}\n'
    "        {{- '<|im_end|>\\n' }}\n"
    '    {%- elif message.role == "tool" %}\n'
    '        {%- if (loop.index0 == 0) or'
    ' (messages[loop.index0 - 1].role != "tool") %}\n'
    "            {{- '<|im_start|>user' }}\n"
    '        {%- endif %}\n'
    "        {{- '\\n<tool_response>\\n' }}\n"
    '        {{- message.content }}\n'
    "        {{- '\\n</tool_response>' }}\n"
    '        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}\n'
    "            {{- '<|im_end|>\\n' }}\n"
    '        {%- endif %}\n'
    '    {%- endif %}\n'
    '{%- endfor %}\n'
    '{%- if add_generation_prompt %}\n'
    "    {{- '<|im_start|>assistant\\n' }}\n"
    '{%- endif %}\n',
  ),
  # Only the answers to the last question keep what they were thought with.
  'qwen3': (
    None,
    '<|im_end|>',
    "{%- if messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    '{%- endif %}{%- set ns = namespace(last=0) %}{%- for m in messages %}'
    "{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}"
    '{%- endfor %}{%- for m in messages %}{%- set content = m.content %}'
    "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}"
    "{%- elif m.role == 'assistant' %}{%- set thought = '' %}"
    '{%- if m.reasoning_content is string %}'
    '{%- set thought = m.reasoning_content %}'
    "{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n')"
    ".split('<think>')[-1].lstrip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}"
    '{%- endif %}{%- if loop.index0 > ns.last and (loop.last or thought) %}'
    "{{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') +"
    " '\\n</think>\\n\\n' + content.lstrip('\\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    '{%- if enable_thinking is defined and enable_thinking is false %}'
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
  ),
  'phi3': (
    '<s>',
    '<|endoftext|>',
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'user' %}"
    "{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}"
    "{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}"
    '{% else %}{{ eos_token }}{% endif %}',
  ),
  'gemma': (
    '<bos>',
    '<eos>',
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}"
    "{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim"
    " + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{'<start_of_turn>model\\n'}}{% endif %}",
  ),
  'deepseek': (
    '<｜begin▁of▁sentence｜>',
    '<｜end▁of▁sentence｜>',
    "{% set ns = namespace(start='') %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}"
    "{%- set ns.start = message['content'] %}{%- endif %}{%- endfor %}"
    '{{bos_token}}{{ns.start}}{%- for message in messages %}'
    "{%- if message['role'] == 'user' %}"
    "{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none"
    " %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}"
    '{%- endfor -%}{% if add_generation_prompt %}'
    "{{'<｜Assistant｜>'}}{% endif %}",
  ),
}
# Marks what the assistant generates; the end of turn stands after the mark.
GENERATION = (
  '{{ bos_token }}{% for m in messages %}'
  "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
  '{% generation %}{{ m.content }}{% endgeneration %}{% else %}'
  "{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKERS = (
  *('<s>', '</s>', '<|im_start|>', '<|im_end|>', '<|begin_of_text|>'),
  *('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '<|endoftext|>'),
  *('<|system|>', '<|user|>', '<|assistant|>', '<|end|>', '<bos>', '<eos>'),
  *('<start_of_turn>', '<end_of_turn>', '<｜begin▁of▁sentence｜>'),
  *('<｜end▁of▁sentence｜>', '<｜User｜>', '<｜Assistant｜>'),
)
SPACES = ('none', 'first', 'always', 'legacy')


@functools.cache
def described(space='none'):
  """A tokenizer.json with all markers; where it puts a space before a text."""
  pre = library.pre_tokenizers
  if space == 'none':
    found = json.loads(subword_samples.byte_level())
  else:
    found = subword_samples.llama_like()
    found['added_tokens'] = found['added_tokens'][:1]
  if space in ('first', 'always'):
    found['normalizer'] = None
    scheme = pre.Metaspace(prepend_scheme=space, split=False)
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = scheme
    found['pre_tokenizer'] = json.loads(tokenizer.to_str())['pre_tokenizer']
  vocab = found['model']['vocab']
  size = max([*vocab.values(), *(t['id'] for t in found['added_tokens'])]) + 1
  flags = dict.fromkeys(
    ('single_word', 'lstrip', 'rstrip', 'normalized'), False
  )
  there = {token['content'] for token in found['added_tokens']}
  for marker in MARKERS:
    if marker in there:
      continue
    number = vocab.get(marker, size)
    size += number == size
    found['added_tokens'].append(
      {'id': number, 'content': marker, **flags, 'special': True}
    )
  # Phi-3 takes the white space after a marker; a token of text, as Qwen's.
  for token in found['added_tokens']:
    token['rstrip'] = token['content'] in ('<|assistant|>', '<|end|>')
  found['added_tokens'] += [
    {'id': size + i, 'content': text, **flags, 'special': False}
    for i, text in enumerate(('<think>', '</think>'))
  ]
  found['added_tokens'].sort(key=lambda token: token['id'])
  return json.dumps(found)


def write(folder, name, space='none', **settings):
  """Writes the tokenizer of a stand-in; returns its folder."""
  begin, end, template = TEMPLATES[name]
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'tokenizer.json').write_text(described(space))
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': begin,
    'eos_token': end,
    'chat_template': template,
  }
  text = json.dumps(config | settings)
  (folder / 'tokenizer_config.json').write_text(text)
  return folder


def load(folder, name, space='none', **settings):
  return tokenizers.get_tokenizer(
    f'hf:{write(folder, name, space, **settings)}'
  )
