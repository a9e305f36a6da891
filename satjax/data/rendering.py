"""Jinja chat templates, rendered as transformers does it.

A template is a stranger's program: it runs in Jinja's sandbox. What it renders
comes back as text in parts. Special tokens that the template writes are parts
of their own; those that a message spells are text.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
import datetime
import functools
import json
import re
from typing import Any, NamedTuple

import jinja2
from jinja2 import ext, nodes, sandbox

from satjax import errors
from satjax.data.documents import CALLS, REASONING
from satjax.data.tokenizers import Tokenizer

# Code points that Unicode keeps from ever being characters. Around what the
# template says the assistant generates, and around special tokens that a
# message spells. The last stands for a message.
OPEN, CLOSE, _SPELL, _SPELT, PLACE = '\ufdd2\ufdd3\ufdd4\ufdd5\ufdd6'
_NO_TEXT = re.compile('[\ufdd0-\ufdd5]')
_MARKS = re.compile(r'{%[-+]?\s*generation\b')


class Part(NamedTuple):
  """A part of a text: a string, or the id of a special token."""

  content: str | int
  is_trained: bool = False  # whether the loss counts it


class _Generation(ext.Extension):
  """`{% generation %}`: what the assistant generates, end of turn included."""

  tags = {'generation'}

  def parse(self, parser: Any) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
    call = self.call_method('_around')
    return nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _around(self, caller: Any) -> str:
    return f'{OPEN}{caller()}{CLOSE}'


def _to_json(
  value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
  """`tojson` without the escapes of HTML that are Jinja's own."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _raise(message: str) -> None:
  raise jinja2.TemplateError(message)


@functools.cache
def _compile(source: str) -> jinja2.Template:
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, ext.loopcontrols],
  )
  # Without the escapes of HTML that are Jinja's own.
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _raise
  environment.globals['strftime_now'] = lambda form: (
    datetime.datetime.now().strftime(form)
  )
  return environment.from_string(source)


class Renderer:
  """A template, with the special tokens that it may write."""

  def __init__(self, source: str, tokenizer: Tokenizer):
    """Compiles a template, which is Jinja.

    Raises:
      ConfigError: it is no template.
    """
    self.source = source
    self.marks = bool(_MARKS.search(source))  # what is generated
    self._named = tokenizer.named_tokens
    self._markers = tokenizer.markers
    longest_first = sorted(self._markers, key=len, reverse=True)
    any_of = '|'.join(map(re.escape, longest_first)) or '(?!)'
    self._marker = re.compile(any_of)
    self._tokens = re.compile(
      f'{_SPELL}(?P<text>{any_of}){_SPELT}|(?P<marker>{any_of})'
      f'|[{OPEN}{CLOSE}{_SPELL}{_SPELT}]'
    )
    try:
      self._template = _compile(source)
    except jinja2.TemplateError as error:
      raise errors.ConfigError(
        f'the chat template of the tokenizer is no Jinja ({error}); name one of'
        ' the built-in ones as data.template'
      ) from error

  def __call__(
    self,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] = (),
    *,
    opens: bool = False,
  ) -> str:
    """A conversation as it is written, with marks that `parts` understands.

    Args:
      opens: whether the assistant is to go on (the generation prompt).

    Raises:
      DataError: the template refuses the conversation.
    """
    try:
      return self._template.render(
        messages=list(map(_aliased, self._safe(messages))),
        tools=self._safe(list(tools)) or None,
        documents=None,
        add_generation_prompt=opens,
        **self._named,
      )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
      raise errors.DataError(
        f'the chat template refuses it: {error}; leave it out, or use another'
        ' data.template'
      ) from error

  def tried(
    self,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] = (),
    *,
    opens: bool = False,
  ) -> str | None:
    """The same; None: the template refuses the conversation."""
    try:
      return self(messages, tools, opens=opens)
    except errors.DataError:
      return None

  def calling(
    self, messages: list[dict[str, Any]], tools: Sequence[Any]
  ) -> list[dict[str, Any]]:
    """The messages with what they call beside no text, or beside none.

    DeepSeek's template looks for calls where the content is null alone.

    Raises:
      DataError: what is called is not written.
    """
    called = [key for key in CALLS if any(key in m for m in messages)]
    if not called:
      return messages
    for empty, render in (('', self), (None, self.tried)):
      tried = [
        m | {'content': m['content'] or empty} if m.keys() & CALLS else m
        for m in messages
      ]
      placed = [
        {k: _placed(v) if k in CALLS else v for k, v in m.items()}
        for m in tried
      ]
      num_calls = json.dumps(placed, ensure_ascii=False).count(PLACE)
      if (render(placed, tools) or '').count(PLACE) >= num_calls:
        return tried
    raise errors.DataError(
      f'it has {called[0]}, which the template does not write; leave it out,'
      " or use data.template='model' with a tokenizer that knows tools"
    )

  def unread(
    self,
    fields: Iterable[str],
    written: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any],
  ) -> set[str]:
    """Fields of messages, or 'tools', without which the same is written."""

    def without(field: str) -> str | None:
      bare = [{k: v for k, v in m.items() if k != field} for m in messages]
      return self.tried(bare, () if field == 'tools' else tools)

    return {field for field in fields if without(field) == written}

  def missing(self, written: str, texts: Iterable[str]) -> int:
    """How many texts do not stand in what is written, but for space around.

    A text that is said twice has to be there twice.
    """
    said = Counter(self._safe(text.strip()) for text in texts)
    return sum(
      max(0, n - written.count(text)) for text, n in said.items() if text
    )

  def _safe(self, value: Any) -> Any:
    """The same with marks around the special tokens that texts spell."""
    if isinstance(value, str):
      value = _NO_TEXT.sub('\ufffd', value)
      return self._marker.sub(f'{_SPELL}\\g<0>{_SPELT}', value)
    if isinstance(value, Mapping):
      pairs = ((self._safe(k), self._safe(x)) for k, x in value.items())
      return dict(pairs)
    if isinstance(value, list | tuple):
      return [self._safe(inner) for inner in value]
    return value

  def marker_in(self, written: str, begin: int, end: int) -> Iterator[re.Match]:
    """The special tokens that the template wrote between two places."""
    found = self._tokens.finditer(written, begin, end)
    return (match for match in found if match['marker'])

  def parts(self, written: str, learned: Sequence[bool] = ()) -> list[Part]:
    """What a model reads, in parts that are learned or not.

    Args:
      written: what a call returned.
      learned: of each stretch that is generated, whether it is learned; (): all
        are.
    """
    found, at, depth, number = [], 0, 0, 0

    def add(content: str | int) -> None:
      is_trained = depth > 0 and (not learned or learned[number - 1])
      last = found[-1] if found else Part(0)
      is_text = isinstance(content, str) and isinstance(last.content, str)
      if is_text and is_trained == last.is_trained:
        found[-1] = Part(last.content + content, is_trained)
      elif content != '':
        found.append(Part(content, is_trained))

    for match in self._tokens.finditer(written):
      add(written[at : match.start()])
      at = match.end()
      if match[0] == OPEN:
        depth, number = depth + 1, number + (depth == 0)
      elif match[0] == CLOSE:
        depth -= 1
      else:
        add(self._markers.get(match['marker'], match['text'] or ''))
    add(written[at:])
    return found


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
  """What a message was thought with, under all names that templates read."""
  thought = next((message[k] for k in REASONING if k in message), None)
  if thought is None:
    return message
  return {'thinking': thought, **message, 'reasoning_content': thought}


def _placed(value: Any) -> Any:
  """Calls with `PLACE` for all names."""
  if isinstance(value, Mapping):
    return {k: PLACE if k == 'name' else _placed(v) for k, v in value.items()}
  return list(map(_placed, value)) if isinstance(value, list) else value
