"""What a source yields, and how a record of a file becomes it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from satjax import errors

ROLES = ('system', 'user', 'assistant')
# Fields that a record is looked through for, in this order.
_TEXTS = ('text',)
_CHATS = ('messages', 'conversations')
_PAIRS = (
  ('prompt', 'answer'),
  ('prompt', 'completion'),
  ('prompt', 'response'),
  ('question', 'answer'),
  ('instruction', 'output'),
  ('instruction', 'response'),
)
_MORE = 'input'  # what an instruction is about, as Alpaca has it
# ShareGPT's names: the keys of a message, and who speaks.
_KEYS = {'from': 'role', 'value': 'content'}
_SPEAKERS = {'human': 'user', 'gpt': 'assistant'}


class Message(NamedTuple):
  """One turn of a conversation: who speaks, one of `ROLES`, and what."""

  role: str
  content: str


class Document(NamedTuple):
  """A text, a pair of a prompt and its answer, or a conversation."""

  id: str  # path inside the source
  text: str  # what is learned; empty for a conversation only
  prompt: str = ''  # stands before the text and is read only; empty: no pair
  # Documents of one group fall into the same split; empty: `id` decides alone.
  group: str = ''
  messages: tuple[Message, ...] = ()  # of a conversation

  @property
  def turns(self) -> tuple[Message, ...]:
    """The messages of a conversation or a pair; of a text: none."""
    if self.prompt:
      return Message('user', self.prompt), Message('assistant', self.text)
    return self.messages


def from_record(
  record: Any, columns: Sequence[str], id: str, place: str
) -> Document | None:
  """The document that a record holds; None: its text is empty.

  Args:
    columns: fields to read: one that holds a text or a list of messages, or
      two, a prompt and its answer. (): a text in "text", messages in "messages"
      or "conversations", or one of the usual pairs.
    place: of the record, for messages of errors.

  Raises:
    DataError: the fields are not there, or hold something else.
  """
  if not isinstance(record, Mapping):
    raise _misfit(place, f'it is a {type(record).__name__}')
  names = tuple(columns) or _known(record)
  if names is None or not record.keys() >= set(names):
    raise _misfit(place, f'its keys are {sorted(map(str, record))}', columns)
  values = [record[name] for name in names]
  is_chat = names[0] in _CHATS or (columns and len(names) == 1)
  if is_chat and isinstance(values[0], list | tuple | Mapping):
    return Document(id, '', messages=_messages(values[0], place))
  for name, value in zip(names, values):
    if not isinstance(value, str):
      kind = type(value).__name__
      raise _misfit(place, f'its "{name}" is a {kind}, not a string', columns)
  *prompt, text = values
  more = record.get(_MORE)
  if prompt and names[0] == 'instruction' and isinstance(more, str) and more:
    prompt = [f'{prompt[0]}\n\n{more}']
  return Document(id, text, *prompt) if text else None


def _known(record: Mapping[str, Any]) -> tuple[str, ...] | None:
  # A text is a text, whatever other fields say about it.
  for name in (*_TEXTS, *_CHATS):
    if name in record:
      return (name,)
  return next((pair for pair in _PAIRS if record.keys() >= set(pair)), None)


def _messages(values: Any, place: str) -> tuple[Message, ...]:
  """Checks a list of messages.

  The system speaks first, if at all; an assistant answers somewhere.
  """
  if isinstance(values, Mapping):
    columns = values.values()
    if any(isinstance(v, str) or not isinstance(v, Iterable) for v in columns):
      values = [values]
    else:  # a list of structs, as TFDS has it
      values = [dict(zip(values, turn)) for turn in zip(*columns)]
  found = []
  for number, value in enumerate(values, 1):
    fields = {}
    if isinstance(value, Mapping):
      fields = {_KEYS.get(key, key): text for key, text in value.items()}
    role, content = fields.get('role'), fields.get('content')
    if isinstance(role, str):
      role = _SPEAKERS.get(role, role)
    if role not in ROLES or not isinstance(content, str):
      raise errors.DataError(
        f'{place}, message {number}: {errors.brief(value)} is no message; write'
        ' {"role": "user", "content": "..."}, the role one of'
        f' {", ".join(ROLES)}'
      )
    if role == 'system' and number > 1:
      raise errors.DataError(
        f'{place}, message {number}: the system speaks first, or not at all;'
        ' put its message at the beginning'
      )
    found.append(Message(role, content))
  if not any(m.role == 'assistant' and m.content for m in found):
    raise errors.DataError(
      f'{place}: {len(found)} messages, none of them by an assistant, so that'
      ' there is nothing to learn; leave this conversation out'
    )
  return tuple(found)


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
