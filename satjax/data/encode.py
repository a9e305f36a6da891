"""Documents to tokens, and to which of them the loss counts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from satjax import errors
from satjax.data import chunks
from satjax.data.chat import Chat
from satjax.data.documents import Document, Message
from satjax.data.rendering import Part
from satjax.data.tokenizers import Tokenizer

# What is counted of a source, and in words; other names are those of fields.
COUNTS = {
  'empty': 'empty, left out',
  'cut': 'very long, cut',
  'replaced': 'characters that are U+FFFD',
  'too_short': 'too short, left out',
  'too_long': 'too long, left out',
  'duplicates': 'duplicates, left out',
  'empty_prompt': 'empty prompts',
  'empty_answer': 'empty answers, not learned',
  'null': 'messages that are null, read as empty',
  'unclear': 'answers whose place the template hides, not learned',
  'shared': 'answers that share a token with their prompt, learned with it',
  'changed': 'messages that the template leaves out or changes',
  'unlearned': 'documents of which nothing is learned',
}


class Encoded(NamedTuple):
  """A document: tokens, of which the loss counts those that are trained."""

  tokens: np.ndarray  # uint16 or uint32 [n], begin of text first
  is_trained: np.ndarray | None  # bool [n]; None: all but the first


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Encodes documents: begin, text, end; or a conversation in a template."""

  tokenizer: Tokenizer
  template: str = 'auto'  # of `chat.Chat`, for pairs and conversations
  reasoning: str = 'template'  # of `chat.REASONING`

  @functools.cached_property
  def chat(self) -> Chat:
    """The template, as it is for this tokenizer.

    Raises:
      ConfigError: there is none of this name.
    """
    return Chat(self.tokenizer, self.template, self.reasoning)

  @property
  def dtype(self) -> np.dtype:
    is_small = self.tokenizer.vocab_size <= 2**16
    return np.dtype(np.uint16 if is_small else np.uint32)

  @property
  def stop_id(self) -> int:
    """The token that ends what the assistant says."""
    stop = self.tokenizer.markers.get(self.chat.stop)
    return self.tokenizer.eos_id if stop is None else stop

  def __call__(
    self,
    documents: Sequence[Document],
    counts: Counter[str] | None = None,
  ) -> list[Encoded]:
    """The tokens of some documents; adds to `counts`, by `COUNTS`.

    Raises:
      DataError: the tokenizer gives an id outside of its vocabulary, or the
        template cannot write a conversation.
    """
    counts = Counter() if counts is None else counts
    for document in documents:
      counts['replaced'] += '\0'.join(document.texts).count('\ufffd')
    texts = iter(
      self.tokenizer.encode_batch(
        [d.texts[-1] for d in documents if not self._is_chat(d)]
      )
    )
    chats = self._chats([d for d in documents if self._is_chat(d)], counts)
    return [
      next(chats) if self._is_chat(d) else self._text(next(texts), d.id)
      for d in documents
    ]

  def each(
    self,
    documents: Iterable[Document],
    counts: Counter[str] | None = None,
  ) -> Iterator[tuple[Document, Encoded]]:
    """Yields documents with their tokens; otherwise as a call.

    As many are encoded together as memory allows, which lets a tokenizer use
    all cores.
    """
    for group in chunks.grouped(
      documents, chunks.num_chars, chunks.CHUNK_BYTES
    ):
      yield from zip(group, self(group, counts))

  def prompt(
    self, messages: Iterable[Message], tools: Sequence[Any] = ()
  ) -> np.ndarray:
    """Tokens up to where the assistant goes on.

    Raises:
      DataError: the template cannot write the messages.
    """
    parts = self.chat.opening(tuple(messages), tools)
    return next(self._encoded([('prompt', parts)], Counter())).tokens

  def _is_chat(self, document: Document) -> bool:
    # Without a template around it, an answer to nothing is a text.
    nothing = Message('user', ''), Message('assistant', document.texts[-1])
    is_bare = document.messages == nothing and not self.chat.joins
    return bool(document.messages) and not is_bare

  def _text(self, ids: np.ndarray, id: str) -> Encoded:
    begin = self.tokenizer.bos_id
    begin = [] if begin is None else [begin]
    parts = [begin, self._checked(ids, id), [self.tokenizer.eos_id]]
    return Encoded(
      np.concatenate(parts, dtype=self.dtype, casting='unsafe'), None
    )

  def _chats(
    self, found: Sequence[Document], counts: Counter[str]
  ) -> Iterator[Encoded]:
    written = []
    for document in found:
      try:
        parts = self.chat.write(document.messages, document.tools, counts)
      except RecursionError as error:
        raise errors.DataError(
          f'document {document.id!r}: lists or objects nested too deeply; leave'
          ' it out'
        ) from error
      except errors.DataError as error:
        raise errors.DataError(f'document {document.id!r}: {error}') from error
      written.append((document.id, parts))
    for encoded in self._encoded(written, counts):
      counts['unlearned'] += not encoded.is_trained.any()
      yield encoded

  def _encoded(
    self,
    written: Sequence[tuple[str, Sequence[Part]]],
    counts: Counter[str],
  ) -> Iterator[Encoded]:
    """Yields the tokens of texts in parts, which have the id of a document."""
    # What is encoded as one: a text, or each of its parts.
    groups = [
      [parts] if self.chat.joins else [[part] for part in parts]
      for _, parts in written
    ]
    contents = (
      [part.content for part in group] for group in itertools.chain(*groups)
    )
    found = iter(self.tokenizer.encode_parts(list(contents)))
    for (id, _), of_text in zip(written, groups):
      tokens, is_trained = [], []
      for group in of_text:
        ids, first, last = next(found)
        of_part = np.array([part.is_trained for part in group], bool)
        tokens.append(self._checked(ids, id))
        is_trained.append(of_part[first] | of_part[last])
        counts['shared'] += int(np.sum(~of_part[first] & of_part[last]))
      yield Encoded(
        np.concatenate(tokens, dtype=self.dtype, casting='unsafe'),
        np.concatenate(is_trained),
      )

  def _checked(self, ids: np.ndarray, id: str) -> np.ndarray:
    # Before the cast, which would wrap a wrong id into a valid one.
    size = self.tokenizer.vocab_size
    if len(ids) and not 0 <= ids.min() <= ids.max() < size:
      raise errors.DataError(
        f'document {id!r}: tokenizer {self.tokenizer.name!r} gives ids from'
        f' {ids.min()} to {ids.max()}, but its vocabulary has {size}; repair'
        ' the tokenizer files'
      )
    return ids


def in_words(name: str) -> str:
  """What a count is of."""
  is_field = name.startswith('field ')
  return f'with a {name}, not read' if is_field else COUNTS.get(name, name)
