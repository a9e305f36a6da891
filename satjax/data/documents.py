"""What a source yields, and how a record of a file becomes it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import json
from typing import Any, NamedTuple

from satjax import errors

ROLES = ('system', 'user', 'assistant', 'tool')
# Fields that a record is looked through for, in this order: a text, messages,
# or a prompt and its answer.
_CHATS = ('messages', 'conversations')
_KNOWN = (
  ('text',),
  *((name,) for name in _CHATS),
  ('prompt', 'answer'),
  ('prompt', 'completion'),
  ('prompt', 'response'),
  ('question', 'answer'),
  ('instruction', 'output'),
  ('instruction', 'response'),
)
# What an instruction is about, and what was said before, as Alpaca has it.
_MORE, _BEFORE = 'input', 'history'
# Beside the turns: what the system says, and what it may call.
_SYSTEM, _TOOLS = 'system', 'tools'
# ShareGPT's names: the keys of a message, and who speaks; and others' names.
_KEYS = {'from': 'role', 'value': 'content'}
_SPEAKERS = {
  'human': 'user',
  'gpt': 'assistant',
  'chatgpt': 'assistant',
  'model': 'assistant',
  'developer': 'system',
  'function': 'tool',
  'ipython': 'tool',
  'observation': 'tool',
}
CALLS = ('tool_calls', 'function_call')
# What a message was thought with, by any name.
REASONING = ('reasoning_content', 'thinking', 'reasoning')
_CALLED, _CALL = CALLS  # the second is also a speaker, who says JSON


class Message(NamedTuple):
  """One turn of a conversation: who speaks, one of `ROLES`, and what."""

  role: str
  content: str
  counts: bool = True  # whether it is learned, if the assistant says it
  fields: Mapping[str, Any] = {}  # what else a template may look at


class Document(NamedTuple):
  """A text, or a conversation; a prompt and its answer are one of two turns."""

  id: str  # path inside the source
  text: str = ''  # all of it is learned; empty for a conversation
  messages: tuple[Message, ...] = ()  # of a conversation
  # Documents of one group fall into the same split; empty: `id` decides alone.
  group: str = ''
  tools: tuple[Any, ...] = ()  # what it may call, as JSON schemas

  @property
  def texts(self) -> list[str]:
    """All that is written in it."""
    return [turn.content for turn in self.messages] or [self.text]


def from_record(
  record: Any,
  columns: Sequence[str],
  id: str,
  place: str,
  counts: Counter[str],
) -> Document | None:
  """The document that a record holds; None: its text is empty.

  Args:
    columns: fields to read: one that holds a text or a list of messages, or
      two, a prompt and its answer. (): a text in "text", messages in "messages"
      or "conversations", or one of the usual pairs.
    place: of the record, for messages of errors.
    counts: what is found, by `encode.COUNTS`, and unread fields, by name.

  Raises:
    DataError: the fields are not there, or hold something else.
  """
  document = _Record(record, columns, place, counts, set()).document(id)
  if document is None:
    counts['empty'] += 1
  return document


class _Record(NamedTuple):
  """A record that becomes a document, and the names that it was read by."""

  values: Any
  columns: Sequence[str]
  place: str
  counts: Counter[str]
  read: set[str]

  def document(self, id: str) -> Document | None:
    if not isinstance(self.values, Mapping):
      raise self.misfit(f'it is a {type(self.values).__name__}')
    names = tuple(self.columns) or self.known()
    if names is None or not self.values.keys() >= set(names):
      raise self.misfit(f'its keys are {sorted(map(str, self.values))}')
    self.read.update(names)
    first, *second = names
    if second:
      turns = self.of_pair(names)
    elif self.columns or first in _CHATS:
      turns = _listed(self.values[first], first, self.place)
    else:
      turns = None
    if turns is not None:
      document = self.of_turns(id, _messages(turns, self.place, self.counts))
    elif not second and (text := self.text(first)):
      document = Document(id, text)
    else:
      return None
    if not self.columns:
      self.count_unread(is_text=turns is None)
    return document

  def known(self) -> tuple[str, ...] | None:
    """The fields to read: the first that say something."""
    there = [names for names in _KNOWN if self.values.keys() >= set(names)]
    full = (names for names in there if self.values[names[-1]])
    return next(full, there[0] if there else None)

  def text(self, name: str) -> str:
    """What a field says; nothing, where it is null."""
    value = self.values[name]
    if not isinstance(value, str | None):
      raise self.misfit(
        f'its "{name}" is a {type(value).__name__}, not a string'
      )
    return value or ''

  def of_pair(self, names: Sequence[str]) -> list[Any] | None:
    """The turns of a prompt and of what is said to it; None: nothing is said.

    Either may be a list of messages, as TRL has them: then nothing of the
    prompt is learned.
    """
    values = [self.values[name] for name in names]
    sides = [_listed(v, n, self.place) for v, n in zip(values, names)]
    if not any(isinstance(side, list) for side in sides):
      return self.of_texts(names)
    asked, said = (
      side if side is not None else [_turn(role, value)] if value else []
      for side, role, value in zip(sides, ROLES[1:], values)
    )
    if said and not asked:
      self.counts['empty_prompt'] += 1
    asked = [m | {'weight': 0} if isinstance(m, dict) else m for m in asked]
    return asked + said if said else None

  def of_texts(self, names: Sequence[str]) -> list[Any] | None:
    """The same of texts, with what an instruction is about, and a history."""
    prompt, answer = map(self.text, names)
    if not answer:
      return None
    more, before = self.values.get(_MORE), self.values.get(_BEFORE)
    if names[0] == 'instruction' and isinstance(more, str):
      self.read.add(_MORE)
      prompt = '\n\n'.join(filter(None, (prompt, more)))
    pairs = [(prompt, answer)]
    before = _json(before) if isinstance(before, str) else before
    if isinstance(before, list) and before:
      self.read.add(_BEFORE)
      if not all(map(_is_pair, before)):
        raise errors.DataError(
          f'{self.place}: its "{_BEFORE}" holds {errors.brief(before)}; write'
          ' pairs [["question", "answer"], ...]'
        )
      pairs = [*before, *pairs]
    return [_turn(*one) for pair in pairs for one in zip(ROLES[1:], pair)]

  def of_turns(self, id: str, turns: tuple[Message, ...]) -> Document:
    """With what a record has beside the turns: the system, and tools."""
    system, tools = self.values.get(_SYSTEM), self.values.get(_TOOLS)
    if isinstance(system, str) and system and turns[0].role != 'system':
      turns = (Message('system', system), *turns)
    if turns[0].content == system:
      self.read.add(_SYSTEM)
    if tools:
      self.read.add(_TOOLS)
      tools = _listed(tools, _TOOLS, self.place)
      tools = [tools] if isinstance(tools, Mapping) else tools
    return Document(id, messages=turns, tools=tuple(tools or ()))

  def count_unread(self, is_text: bool) -> None:
    """Counts fields that say something; of a text only those of other forms."""
    known = {_MORE, _BEFORE, _SYSTEM, _TOOLS}.union(*_KNOWN)
    for key, value in self.values.items():
      is_said = value is not None and value != '' and value != []
      if is_said and key not in self.read and (key in known or not is_text):
        self.counts[field(key)] += 1

  def misfit(self, found: str) -> errors.DataError:
    needed = (
      'an object with a string field "text", or with string fields "prompt" and'
      ' "answer", or with "messages", is needed; name other fields in'
      ' data.columns'
    )
    if self.columns:
      fields = ' and '.join(f'"{name}"' for name in self.columns)
      needed = f'the fields {fields} of data.columns are needed'
    return errors.DataError(f'{self.place}: {needed}; {found}')


def _turn(role: str, content: Any) -> dict[str, Any]:
  return {'role': role, 'content': content}


def _is_pair(value: Any) -> bool:
  is_list = isinstance(value, list | tuple) and len(value) == 2
  return is_list and all(isinstance(text, str) for text in value)


def field(name: str) -> str:
  """How a field that is not read is counted."""
  return f'field {name!r}'


def _listed(value: Any, name: str, place: str) -> Any:
  """Messages, which may be JSON in a string; None: it is another text."""
  if isinstance(value, list | tuple | Mapping):
    return value
  if isinstance(value, str) and value.lstrip()[:1] in ('[', '{'):
    found = _json(value)
    if isinstance(found, list | Mapping) and (name in _LISTS or _speak(found)):
      return found
  if name in _LISTS and value not in (None, ''):
    raise errors.DataError(
      f'{place}: its "{name}" is {errors.brief(value)}; write a list of objects'
    )
  return None


_LISTS = (*_CHATS, _TOOLS, _CALLED)


def _json(text: Any) -> Any:
  """What a text is as JSON; None: it is none."""
  try:
    return json.loads(text)
  except (TypeError, ValueError, RecursionError):
    return None


def _speak(values: Any) -> bool:
  """Whether a list that was found in a text holds messages."""
  return isinstance(values, list) and all(
    isinstance(value, Mapping) and {'role', 'from'} & set(value)
    for value in values
  )


def _messages(
  values: Any, place: str, counts: Counter[str]
) -> tuple[Message, ...]:
  """Checks a list of messages.

  The system speaks first, if at all; an assistant answers somewhere.
  """
  if isinstance(values, Mapping):
    columns = values.values()
    if any(isinstance(v, str) or not isinstance(v, Iterable) for v in columns):
      values = [values]
    else:  # a list of structs, as TFDS has it
      lists = {name: list(column) for name, column in values.items()}
      if len({len(column) for column in lists.values()}) > 1:
        raise errors.DataError(
          f'{place}: its lists {", ".join(map(repr, lists))} differ in length;'
          ' write a list of objects'
        )
      values = [dict(zip(lists, turn)) for turn in zip(*lists.values())]
  found = [
    _message(value, f'{place}, message {number}', counts)
    for number, value in enumerate(values, 1)
  ]
  for number, message in enumerate(found[1:], 2):
    if message.role == 'system':
      raise errors.DataError(
        f'{place}, message {number}: the system speaks first, or not at all;'
        ' put its message at the beginning'
      )
  if not any(m.role == 'assistant' for m in found):
    raise errors.DataError(
      f'{place}: {len(found)} messages, none of them by an assistant, so that'
      ' there is nothing to learn; leave this conversation out'
    )
  return tuple(found)


def _message(value: Any, place: str, counts: Counter[str]) -> Message:
  fields = dict(value) if isinstance(value, Mapping) else {}
  for theirs, ours in _KEYS.items():
    if fields.get(ours) is None and theirs in fields:
      fields[ours] = fields.pop(theirs)
  is_null = fields.get('content', '') is None
  role, content = fields.pop('role', None), fields.pop('content', None)
  fields = {key: v for key, v in fields.items() if v not in (None, [], {})}
  if isinstance(role, str):
    role = _SPEAKERS.get(role, role)
  if role == _CALL and (found := _called(content)):
    role, content, fields[CALLS[0]] = 'assistant', '', found
  calls = role == 'assistant' and any(key in fields for key in CALLS)
  if content is None and (is_null or calls):
    counts.update(() if calls else ('null',))
    content = ''
  if isinstance(fields.get(_CALLED), str):
    fields[_CALLED] = _listed(fields[_CALLED], _CALLED, place)
  if isinstance(content, list | tuple):
    content = _joined(content, counts)
  if role not in ROLES or not isinstance(content, str):
    raise errors.DataError(
      f'{place}: {errors.brief(value)} is no message; write {{"role": "user",'
      f' "content": "..."}}, the role one of {", ".join(ROLES)}; of parts, only'
      ' those of type "text" can be read'
    )
  weight = fields.pop('weight', 1)
  if weight not in (0, 1):
    raise errors.DataError(
      f'{place}: weight {weight!r}; 1 is learned, 0 is not, and nothing is'
      ' between'
    )
  thinks = any(fields.get(name) for name in REASONING)
  is_empty = role == 'assistant' and not (content or calls or thinks)
  counts.update(('empty_answer',) if is_empty else ())
  counts.update(('empty_prompt',) if role == 'user' and not content else ())
  return Message(role, content, bool(weight) and not is_empty, fields)


def _called(said: Any) -> list[dict[str, Any]]:
  """The calls that ShareGPT has as JSON in a turn; []: there are none."""
  found = _json(said)
  found = found if isinstance(found, list) else [found]
  if not all(isinstance(call, Mapping) and 'name' in call for call in found):
    return []
  return [{'type': 'function', 'function': call} for call in found]


def _joined(parts: Sequence[Any], counts: Counter[str]) -> str | None:
  """The text of a message in parts, with others counted; None: not all text."""
  known = [part for part in parts if isinstance(part, Mapping)]
  others = ((n, x) for part in known for n, x in part.items() if n != 'type')
  counts.update(field(n) for n, x in others if x and n != 'text')
  texts = [
    part.get('text')
    if isinstance(part, Mapping) and part.get('type', 'text') == 'text'
    else part
    for part in parts
  ]
  return ''.join(texts) if all(isinstance(t, str) for t in texts) else None
