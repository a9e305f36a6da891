"""Chat templates: the turns of a conversation to pieces of text and markers.

The loss counts what the assistant says and the marker that ends its turn, and
nothing else. Markers are tokens of their own, never found inside of a text; a
tokenizer that lacks one spells it as text. The last marker of a turn of the
assistant is the tokenizer's own end of text where it has no such token, so that
there always is one token that says: stop.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from satjax.data.documents import Message

_ALPACA = (
  'Below is an instruction that describes a task. Write a response that'
  ' appropriately completes the request.'
)


class Piece(NamedTuple):
  """A part of a document."""

  text: str  # what it says, or the name of a marker
  is_trained: bool = False  # whether the loss counts it
  # 'text'; 'marker', one token; 'stop', the one that ends a turn of the
  # assistant; 'begin' or 'end' of text.
  kind: str = 'text'


Messages = Sequence[Message]


def plain(messages: Messages, stop: Piece) -> Iterator[Piece]:
  """The texts as they are."""
  for role, content in messages:
    if role == 'assistant':
      yield from (Piece(content, is_trained=True), stop)
    else:
      yield Piece(content)


def alpaca(messages: Messages, stop: Piece) -> Iterator[Piece]:
  """Stanford Alpaca's headings (Taori et al., 2023).

  What the system says stands in place of the introduction.
  """
  if messages[0].role != 'system':
    yield Piece(f'{_ALPACA}\n\n')
  for role, content in messages:
    if role == 'system':
      yield Piece(f'{content}\n\n')
    elif role == 'user':
      yield Piece(f'### Instruction:\n{content}\n\n')
    else:
      yield Piece('### Response:\n')
      yield from (Piece(content, is_trained=True), stop, Piece('\n\n'))


def llama2(messages: Messages, stop: Piece) -> Iterator[Piece]:
  """Llama 2 (Touvron et al., 2023b): every pair begins and ends a text."""
  system, is_first = '', True
  for role, content in messages:
    if role == 'system':
      system = f'<<SYS>>\n{content}\n<</SYS>>\n\n'
    elif role == 'user':
      if not is_first:
        yield Piece('', kind='begin')
      yield Piece(f'[INST] {system}{content.strip()} [/INST]')
      system, is_first = '', False
    else:
      yield from (Piece(f' {content.strip()} ', is_trained=True), stop)


def llama3(messages: Messages, stop: Piece) -> Iterator[Piece]:
  """Llama 3 (Grattafiori et al., 2024)."""
  for role, content in messages:
    yield Piece('<|start_header_id|>', kind='marker')
    yield Piece(role)
    yield Piece('<|end_header_id|>', kind='marker')
    yield Piece('\n\n')
    is_trained = role == 'assistant'
    yield Piece(content.strip(), is_trained)
    yield stop._replace(is_trained=is_trained)


def chatml(messages: Messages, stop: Piece) -> Iterator[Piece]:
  """ChatML (OpenAI, 2023), which Qwen uses."""
  for role, content in messages:
    yield Piece('<|im_start|>', kind='marker')
    yield Piece(f'{role}\n')
    is_trained = role == 'assistant'
    yield Piece(content, is_trained)
    yield from (stop._replace(is_trained=is_trained), Piece('\n'))


# By name, with the marker that ends a turn; '': the end of text.
TEMPLATES = {
  'plain': (plain, ''),
  'alpaca': (alpaca, ''),
  'llama2': (llama2, ''),
  'llama3': (llama3, '<|eot_id|>'),
  'chatml': (chatml, '<|im_end|>'),
}


def pieces(template: str, messages: Messages) -> list[Piece]:
  """A conversation as a template writes it, after a begin of text."""
  render, marker = TEMPLATES[template]
  stop = Piece(marker, is_trained=True, kind='stop')
  return [p for p in render(messages, stop) if p.text or p.kind != 'text']


def opening(template: str, messages: Messages) -> list[Piece]:
  """A conversation up to where the assistant goes on."""
  said = pieces(template, [*messages, Message('assistant', '.')])
  last = max(i for i, p in enumerate(said) if p.is_trained and p.kind == 'text')
  return said[:last]
