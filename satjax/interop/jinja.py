"""The built-in chat templates in Jinja, as an export carries them.

transformers writes by these what `data.chat` writes. Jinja has one string: text
of two pieces that no marker parts is one text to the tokenizer.
"""

import json

from satjax.data.encode import Encoder
from satjax.data.tokenizers import Tokenizer

FILE = 'chat_template.jinja'
# `begin` and `stop` are set to the tokens of the tokenizer.
_TEMPLATES = {
  'plain': r"""
{{- begin -}}
{%- for m in messages -%}
  {{- m['content'] -}}
  {%- if m['role'] == 'assistant' -%}{{- stop -}}{%- endif -%}
{%- endfor -%}
""",
  'alpaca': r"""
{{- begin -}}
{%- if messages[0]['role'] != 'system' -%}
  {{- 'Below is an instruction that describes a task. Write a response that' -}}
  {{- ' appropriately completes the request.\n\n' -}}
{%- endif -%}
{%- for m in messages -%}
  {%- if m['role'] == 'system' -%}
    {{- m['content'] ~ '\n\n' -}}
  {%- elif m['role'] == 'user' -%}
    {{- '### Instruction:\n' ~ m['content'] ~ '\n\n' -}}
  {%- else -%}
    {{- '### Response:\n' ~ m['content'] ~ stop ~ '\n\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Response:\n' -}}{%- endif -%}
""",
  'llama2': r"""
{%- set next = namespace(system='') -%}
{%- for m in messages -%}
  {%- if m['role'] == 'system' -%}
    {%- set next.system = '<<SYS>>\n' ~ m['content'] ~ '\n<</SYS>>\n\n' -%}
  {%- elif m['role'] == 'user' -%}
    {{- begin ~ '[INST] ' ~ next.system ~ m['content'] | trim ~ ' [/INST]' -}}
    {%- set next.system = '' -%}
  {%- else -%}
    {{- ' ' ~ m['content'] | trim ~ ' ' ~ stop -}}
  {%- endif -%}
{%- endfor -%}
""",
  'llama3': r"""
{{- begin -}}
{%- set head, tail = '<|start_header_id|>', '<|end_header_id|>\n\n' -%}
{%- for m in messages -%}
  {{- head ~ m['role'] ~ tail ~ m['content'] | trim ~ stop -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- head ~ 'assistant' ~ tail -}}{%- endif -%}
""",
  'chatml': r"""
{{- begin -}}
{%- for m in messages -%}
  {{- '<|im_start|>' ~ m['role'] ~ '\n' ~ m['content'] ~ stop ~ '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
""",
}


def written(encoder: Encoder) -> str | None:
  """The chat template of an encoder; None: it is the tokenizer's own."""
  if encoder.template not in _TEMPLATES:
    return None
  tokenizer = encoder.tokenizer
  begin, stop = (
    json.dumps('' if i is None else tokenizer.token(i), ensure_ascii=False)
    for i in (tokenizer.bos_id, encoder.stop_id)
  )
  return (
    f'{{%- set begin, stop = {begin}, {stop} -%}}{_TEMPLATES[encoder.template]}'
  )


def name_of(template: str, tokenizer: Tokenizer) -> str | None:
  """The built-in template that `written` has made a text of; None: none."""
  encoders = (Encoder(tokenizer, name) for name in _TEMPLATES)
  return next((e.template for e in encoders if written(e) == template), None)
