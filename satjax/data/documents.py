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


def from_record(
  record: Any,
  columns: Sequence[str],
  id: str,
  place: str,
  counts: Counter[str] | None = None,
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
  counts = Counter() if counts is None else counts
  if not isinstance(record, Mapping):
    raise _misfit(place, f'it is a {type(record).__name__}')
  names = tuple(columns) or _known(record)
  if names is None or not record.keys() >= set(names):
    raise _misfit(place, f'its keys are {sorted(map(str, record))}', columns)
  read, turns, document = {*names}, None, None
  if len(names) == 2:
    turns = _of_pair(record, names, place, columns, counts, read)
  elif columns or names[0] in _CHATS:
    turns = _listed(record[names[0]], names[0], place)
  if turns is not None:
    document = Document(id, messages=_messages(turns, place, counts))
    document = _with_more(document, record, place)
  elif len(names) == 1 and (text := _text(record, names[0], place, columns)):
    document = Document(id, text)
  if document is None:
    counts['empty'] += 1
  elif not columns:
    _count_unread(record, read, document, counts)
  return document


def _known(record: Mapping[str, Any]) -> tuple[str, ...] | None:
  """The fields to read: the first that say something."""
  there = [names for names in _KNOWN if record.keys() >= set(names)]
  full = (names for names in there if record[names[-1]])
  return next(full, there[0] if there else None)


def _text(
  record: Mapping[str, Any], name: str, place: str, columns: Sequence[str]
) -> str:
  """What a field says; nothing, where it is null."""
  value = record[name]
  if not isinstance(value, str | None):
    kind = type(value).__name__
    raise _misfit(place, f'its "{name}" is a {kind}, not a string', columns)
  return value or ''


def _of_pair(
  record: Mapping[str, Any],
  names: Sequence[str],
  place: str,
  columns: Sequence[str],
  counts: Counter[str],
  read: set[str],
) -> list[Any] | None:
  """The turns of a prompt and of what is said to it; None: nothing is said.

  Either may be a list of messages, as TRL has them: then nothing of the prompt
  is learned. `read` gets the other fields that belong to a pair of texts.
  """
  sides = [_listed(record[name], name, place) for name in names]
  if any(isinstance(side, list) for side in sides):
    asked, said = (
      side if side is not None else _turns(role, record[name])
      for side, role, name in zip(sides, ROLES[1:], names)
    )
    if said and not asked:
      counts['empty_prompt'] += 1
    asked = [m | {'weight': 0} if isinstance(m, dict) else m for m in asked]
    return asked + said if said else None
  prompt, answer = (_text(record, name, place, columns) for name in names)
  more, before = record.get(_MORE), record.get(_BEFORE)
  if names[0] == 'instruction' and isinstance(more, str):
    read.add(_MORE)
    prompt = '\n\n'.join(filter(None, (prompt, more)))
  before = _json(before) if isinstance(before, str) else before
  if not answer:
    return None
  pairs = [(prompt, answer)]
  if isinstance(before, list) and before:
    read.add(_BEFORE)
    if not all(map(_is_pair, before)):
      raise errors.DataError(
        f'{place}: its "{_BEFORE}" holds {errors.brief(before)}; write pairs'
        ' [["question", "answer"], ...]'
      )
    pairs = [*before, *pairs]
  return [
    {'role': role, 'content': text}
    for pair in pairs
    for role, text in zip(ROLES[1:], pair)
  ]


def _turns(role: str, content: Any) -> list[Any]:
  return [{'role': role, 'content': content}] if content else []


def _is_pair(value: Any) -> bool:
  is_list = isinstance(value, list | tuple) and len(value) == 2
  return is_list and all(isinstance(text, str) for text in value)


def _with_more(
  document: Document, record: Mapping[str, Any], place: str
) -> Document:
  """With what a record has beside the turns: the system, and tools."""
  system, tools = record.get(_SYSTEM), record.get(_TOOLS)
  turns = document.messages
  if isinstance(system, str) and system and turns[0].role != 'system':
    turns = (Message('system', system), *turns)
    document = document._replace(messages=turns)
  if tools:
    tools = _listed(tools, _TOOLS, place)
    tools = [tools] if isinstance(tools, Mapping) else tools
    return document._replace(tools=tuple(tools))
  return document


def _count_unread(
  record: Mapping[str, Any],
  read: set[str],
  document: Document,
  counts: Counter[str],
) -> None:
  """Counts the fields that say something and are not in the document."""
  turns = document.messages
  known = {_MORE, _BEFORE, _SYSTEM, _TOOLS}.union(*_KNOWN)
  if turns and turns[0].content == record.get(_SYSTEM):
    read.add(_SYSTEM)
  if document.tools:
    read.add(_TOOLS)
  for key, value in record.items():
    is_said = value is not None and value != '' and value != []
    if is_said and key not in read and (turns or key in known):
      counts[field(key)] += 1


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


def _misfit(
  place: str, found: str, columns: Sequence[str] = ()
) -> errors.DataError:
  if columns:
    fields = ' and '.join(f'"{name}"' for name in columns)
    return errors.DataError(
      f'{place}: the fields {fields} of data.columns are needed; {found}'
    )
  return errors.DataError(
    f'{place}: an object with a string field "text", or with string fields'
    ' "prompt" and "answer", or with "messages", is needed; name other fields'
    f' in data.columns; {found}'
  )
