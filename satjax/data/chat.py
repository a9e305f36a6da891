"""Chat templates: a conversation to what a model reads, and what it learns.

The loss counts what the assistant says and the marker that ends its turn, and
nothing else. A template is the tokenizer's own, or one of a few built-in ones;
all are Jinja. Where a template marks what the assistant generates, that is
learned. Otherwise an answer is found by rendering: it begins where the prompt
for it ends, and ends with the first end of turn after that.

A built-in template uses the markers that the tokenizer has, and spells others
as text. The last marker of a turn of the assistant is the tokenizer's own end
of text where it has no such token, so that there always is one token that says:
stop.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import re
from typing import Any

from absl import logging

from satjax import errors
from satjax.data import documents
from satjax.data.documents import CALLS, Message
from satjax.data.rendering import CLOSE, OPEN, PLACE, Part, Renderer
from satjax.data.tokenizers import Tokenizer

_ALPACA = (
  'Below is an instruction that describes a task. Write a response that'
  ' appropriately completes the request.'
)
# By name, with the marker that ends a turn; '': the end of text.
BUILT_IN = {
  # The texts, and a new line before an answer unless a space is there.
  'plain': (
    "{{ begin }}{% for m in messages %}{% if m.role == 'assistant' %}"
    '{% generation %}{{ m.content + stop }}{% endgeneration %}'
    "{% else %}{{ m.content + ('' if m.content[-1:] in ' \\n\\t' else"
    " '\\n') }}{% endif %}{% endfor %}",
    '',
  ),
  # The texts as they are; what was 'plain' up to version 1 (`history`).
  'bare': (
    "{{ begin }}{% for m in messages %}{% if m.role == 'assistant' %}"
    '{% generation %}{{ m.content + stop }}{% endgeneration %}'
    '{% else %}{{ m.content }}{% endif %}{% endfor %}',
    '',
  ),
  # Stanford Alpaca's headings (Taori et al., 2023). What the system says stands
  # in place of the introduction.
  'alpaca': (
    "{{ begin }}{% if messages[0].role != 'system' %}{{ '" + _ALPACA + "\\n\\n'"
    " }}{% endif %}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ m.content + '\\n\\n' }}{% elif m.role == 'user' %}"
    "{{ '### Instruction:\\n' + m.content + '\\n\\n' }}{% else %}"
    "{{ '### Response:\\n' }}{% generation %}{{ m.content + stop }}"
    "{% endgeneration %}{{ '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
    '',
  ),
  # Llama 2 (Touvron et al., 2023b): every pair begins and ends a text.
  'llama2': (
    "{{ begin }}{% set ns = namespace(system='', later=false) %}"
    "{% for m in messages %}{% if m.role == 'system' %}{% set ns.system ="
    " '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' %}{% elif m.role == 'user'"
    " %}{{ (begin if ns.later else '') + '[INST] ' + ns.system"
    " + m.content.strip() + ' [/INST]' }}{% set ns.system = '' %}"
    '{% set ns.later = true %}{% else %}{% generation %}'
    "{{ ' ' + m.content.strip() + ' ' + stop }}{% endgeneration %}{% endif %}"
    '{% endfor %}',
    '',
  ),
  # Llama 3 (Grattafiori et al., 2024).
  'llama3': (
    '{{ begin }}{% for m in messages %}'
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}"
    '{{ m.content.strip() + stop }}{% endgeneration %}'
    '{% else %}{{ m.content.strip() + stop }}{% endif %}{% endfor %}'
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant"
    "<|end_header_id|>\\n\\n' }}{% endif %}",
    '<|eot_id|>',
  ),
  # ChatML (OpenAI, 2023), which Qwen uses.
  'chatml': (
    "{{ begin }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + stop }}"
    '{% endgeneration %}{% else %}{{ m.content + stop }}{% endif %}'
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}",
    '<|im_end|>',
  ),
}
REASONING = ('template', 'think', 'drop')
_TEXTS = ('content', *documents.REASONING)
_SYSTEM, _ASKED, _SAID = (
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'One?'},
  {'role': 'assistant', 'content': 'Yes.'},
)


class Chat:
  """A template for the tokenizer that it is written with.

  Attributes:
    source: Jinja, complete in itself.
    stop: the marker that ends what the assistant says.
    identity: equal for templates that write the same.
    joins: whether a conversation is encoded as one text; 'plain' and 'bare'
      encode every part for itself, so that no token is half prompt and half
      answer.
  """

  def __init__(
    self, tokenizer: Tokenizer, template: str, reasoning: str = 'template'
  ):
    """Chooses a template.

    Args:
      template: 'auto', 'model', 'model:NAME', or one of `BUILT_IN`.
      reasoning: what becomes of the `reasoning_content` of a message: the
        'template' writes it, or not; 'think': it stands before the answer, in
        <think> tags; 'drop': it is taken out.

    Raises:
      ConfigError: the tokenizer has no such template.
    """
    own = tokenizer.chat_templates
    if template == 'auto':
      template = 'model' if own else 'plain'
    if template in BUILT_IN and _takes_own(tokenizer, template):
      template = 'model'
    self.joins = template not in ('plain', 'bare')
    self._reasoning = reasoning
    self._is_own = template not in BUILT_IN
    if self._is_own:
      self.source = _named(tokenizer, template.partition(':')[2])
      sources = json.dumps([self.source, own.get('tool_use')])
      digest = hashlib.blake2b(sources.encode())
      self.identity = f'model:{digest.hexdigest()[:16]}'
    else:
      self.source, self.identity = built_in(tokenizer, template), template
    self._renderer = Renderer(self.source, tokenizer)
    self._for_tools = self._renderer
    if template == 'model' and 'tool_use' in own:  # as transformers chooses
      self._for_tools = Renderer(own['tool_use'], tokenizer)
    self.stop = _stop(self._renderer)

  def write(
    self, turns: Sequence[Message], tools: Sequence[Any], counts: Counter[str]
  ) -> list[Part]:
    """A conversation as a model reads it, and which of it is learned.

    Args:
      counts: what is found, by `encode.COUNTS`, and unread fields, by name.

    Raises:
      DataError: the template cannot write it.
    """
    renderer, messages = self._prepared(turns, tools)
    written = renderer(messages, tools)
    every = [*itertools.chain(*messages), *(['tools'] if tools else [])]
    unread = {*every} - {'role', 'content'}
    if self._is_own:
      unread = renderer.unread(unread, written, messages, tools)
    counts.update(documents.field(key) for key in every if key in unread)
    keys = [key for key in _TEXTS if key not in unread]
    texts = (str(m.get(k) or '') for m in messages for k in keys)
    counts['changed'] += renderer.missing(written, texts)
    if self._reasoning == 'drop' or unread & {*documents.REASONING}:
      # Nothing but a thought that is not written is not learned.
      says = (bool(t.content or t.fields.keys() & CALLS) for t in turns)
      turns = [t._replace(counts=t.counts and x) for t, x in zip(turns, says)]
    learned = []  # all that is marked
    if not renderer.marks:
      written = self._marked(renderer, written, messages, tools, turns, counts)
    elif self.stop:
      written = written.replace(CLOSE + self.stop, self.stop + CLOSE)
    asked = [turn.counts for turn in turns if turn.role == 'assistant']
    if renderer.marks and not all(asked):
      learned = asked
      if written.count(OPEN) != len(asked):
        learned = [False] * written.count(OPEN)
        counts['unclear'] += sum(asked)
    return renderer.parts(written, learned)

  def opening(
    self, turns: Sequence[Message], tools: Sequence[Any] = ()
  ) -> list[Part]:
    """A conversation up to where the assistant goes on; raises as `write`."""
    renderer, messages = self._prepared(turns, tools)
    parts = renderer.parts(renderer(messages, tools, opens=True))
    return [part._replace(is_trained=False) for part in parts]

  def _marked(
    self,
    renderer: Renderer,
    written: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any],
    turns: Sequence[Message],
    counts: Counter[str],
  ) -> str:
    """With marks around what is learned; counts what is unclear."""
    if self.stop is None:
      raise errors.DataError(
        'the chat template of the tokenizer writes no special token after an'
        ' answer, and the model would never learn to stop; name a built-in'
        ' template as data.template'
      )

    def span(number: int) -> tuple[int, int] | None:
      """Where an answer begins and its turn ends; None: it cannot be told."""
      opening = renderer.tried(messages[:number], tools, opens=True)
      # A loop over turns writes nothing before the first.
      if not number and renderer.tried([], tools) in (None, opening):
        return None
      following, end = messages[number + 1 : number + 2], len(written)
      if following:  # up to what is said next
        other = {**following[0], 'content': PLACE}
        other = renderer.tried([*messages[: number + 1], other], tools)
        end = len(os.path.commonprefix([written, other or '']))
      if opening is None or not written.startswith(opening):
        return None
      markers = renderer.marker_in(written, len(opening), end)
      stop = next((m.end() for m in markers if m[0] == self.stop), None)
      return stop and (len(opening), stop)

    spans = [
      span(number)
      for number, turn in enumerate(turns)
      if turn.role == 'assistant' and turn.counts
    ]
    counts['unclear'] += spans.count(None)
    for begin, end in sorted(filter(None, spans), reverse=True):
      answer = f'{OPEN}{written[begin:end]}{CLOSE}'
      written = written[:begin] + answer + written[end:]
    return written

  def _prepared(
    self, turns: Sequence[Message], tools: Sequence[Any]
  ) -> tuple[Renderer, list[dict[str, Any]]]:
    """The template that is meant, and the messages as it writes them all.

    Raises:
      DataError: what is called, or what a tool says, would be lost.
    """
    renderer = self._for_tools if tools else self._renderer
    messages = renderer.calling(list(map(self._as_dict, turns)), tools)
    if any(turn.role == 'tool' for turn in turns) and not (
      self._is_own and _knows_tools(renderer)
    ):
      raise errors.DataError(
        "a message has role 'tool', which the template does not write; leave it"
        " out, or use data.template='model' with a tokenizer that knows tools"
      )
    return renderer, messages

  def _as_dict(self, turn: Message) -> dict[str, Any]:
    content, fields = turn.content, dict(turn.fields)
    thought = next(filter(None, map(fields.get, documents.REASONING)), None)
    if self._reasoning != 'template':
      fields = {k: v for k, v in fields.items() if k not in documents.REASONING}
    if self._reasoning == 'think' and thought:
      content = f'<think>\n{thought}\n</think>\n\n{content}'
    return {'role': turn.role, 'content': content, **fields}


def built_in(tokenizer: Tokenizer, name: str) -> str:
  """The source of a built-in template, with the markers of a tokenizer."""
  source, stop = BUILT_IN[name]
  begin = '' if tokenizer.bos_id is None else _name(tokenizer, tokenizer.bos_id)
  if begin in source:  # it begins every turn
    begin = ''
  if stop not in tokenizer.markers:
    stop = _name(tokenizer, tokenizer.eos_id)
  variables = {'begin': begin, 'stop': stop}
  named = (f'{{% set {k} = {json.dumps(v)} %}}' for k, v in variables.items())
  return ''.join(named) + source


def _name(tokenizer: Tokenizer, number: int) -> str:
  return next(name for name, n in tokenizer.markers.items() if n == number)


def _named(tokenizer: Tokenizer, name: str) -> str:
  """The source of a template of the tokenizer; '': the default one."""
  found = tokenizer.chat_templates
  if (name or 'default') in found:
    return found[name or 'default']
  has = f'it has {", ".join(found)}' if found else 'it has none'
  raise errors.ConfigError(
    f'tokenizer {tokenizer.name!r} has no chat template'
    f' {name or "default"!r}; {has}; allowed for data.template: model:NAME of'
    f' these, {", ".join(BUILT_IN)}'
  )


def _stop(renderer: Renderer) -> str | None:
  """The marker that ends a turn of the assistant; None: there is none."""
  written = renderer.tried([_ASKED, _SAID | {'content': PLACE}]) or ''
  written = written.replace(CLOSE, '')
  markers = renderer.marker_in(written, written.find(PLACE), len(written))
  return next((match[0] for match in markers), None)


@functools.cache
def _knows_tools(renderer: Renderer) -> bool:
  """Whether what a tool says is written."""
  heard = {'role': 'tool', 'content': PLACE}
  written = renderer.tried([_ASKED, _SAID, heard, _SAID]) or ''
  return PLACE in written or bool(re.search('[\'"]tool[\'"]', renderer.source))


def _takes_own(tokenizer: Tokenizer, name: str) -> bool:
  """Whether the tokenizer's own template is the built-in one that is named.

  They may differ in what stands before the first turn: a begin of text, and
  what the system says where nobody is the system. Then the own one is meant,
  since the model knows no other. Says once what the difference is.
  """
  if 'default' not in tokenizer.chat_templates:
    return False
  own = Renderer(_named(tokenizer, ''), tokenizer)
  ours = Renderer(built_in(tokenizer, name), tokenizer)
  begin = tokenizer.named_tokens.get('bos_token', '')
  chats = (
    ([_SYSTEM, _ASKED, _SAID, _ASKED], True),
    ([_SYSTEM, _ASKED, _SAID], False),
    ([_ASKED], True),
  )
  alike, difference = [], None
  for chat, opens in chats:
    written = [r.tried(chat, opens=opens) or '' for r in (ours, own)]
    written = [text.replace(OPEN, '').replace(CLOSE, '') for text in written]
    difference = difference or _difference(*written)
    alike.append(len({text.replace(begin, '') for text in written}) == 1)
  is_same = all(alike[:2])
  if difference:
    taken = 'is of that form and is used' if is_same else 'is not used'
    _say(
      f'data.template {name!r}: the template of tokenizer {tokenizer.name}'
      f" {taken}; it differs: {difference}; data.template='model' names it"
    )
  return is_same


def _difference(ours: str, own: str) -> str | None:
  if ours == own:
    return None
  at = len(os.path.commonprefix([ours, own]))
  first, second = (repr(t[max(0, at - 8) : at + 24]) for t in (ours, own))
  return f'at character {at} {first} is {second} in its own'


@functools.cache  # says it once
def _say(text: str) -> None:
  if multiprocessing.parent_process() is None:
    logging.warning(text)
