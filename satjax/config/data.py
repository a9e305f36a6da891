"""The settings of the data: which text, and how it becomes rows of tokens."""

from collections.abc import Iterator
import dataclasses
import math
import re
from typing import Any

from satjax.config import schema

TOKENIZERS = (
  "'byte' (256 bytes, begin and end of text) | 'hf:PATH' (a tokenizer.json, or"
  " a directory that has one) | 'sentencepiece:PATH' (a .model file)"
)


TEMPLATES = (
  "'auto' ('model' where the tokenizer has a chat template, else 'plain') |"
  " 'model' (the tokenizer's own) | 'model:NAME' (one of several) | 'plain' |"
  " 'bare' (nothing between question and answer) | 'alpaca' | 'llama2' |"
  " 'llama3' | 'chatml'"
)


def names_template(name: str) -> bool:
  """Whether `name` has one of the forms of `TEMPLATES`."""
  known = 'auto|model|model:.+|plain|bare|alpaca|llama2|llama3|chatml'
  return bool(re.fullmatch(known, name))


def names_tokenizer(spec: str) -> bool:
  """Whether `spec` has one of the forms of `TOKENIZERS`."""
  return bool(re.fullmatch(r'byte|(hf|sentencepiece):\S.*', spec))


def _source_mixture(empty: bool) -> Any:
  return schema.rule(
    lambda value: (value or empty) and all(map(_is_weighted_source, value)),
    "a tuple of sources or (source, weight), such as ('stdlib:docs',) or"
    " (('stdlib:docs', 0.7), ('text:books/*.txt', 0.3)), weights above 0",
  )


def _is_weighted_source(value: Any) -> bool:
  match value:
    case str():
      return bool(value)
    case [str(), weight]:
      return schema.is_number(weight) and 0 < weight < math.inf
  return False


@dataclasses.dataclass(frozen=True)
class DataConfig(schema.Group):
  """Which text, how it is cut into tokens and rows."""

  train: tuple = _source_mixture(empty=False)
  eval: tuple = _source_mixture(empty=True)
  columns: tuple = schema.rule(
    lambda v: len(v) <= 2 and all(isinstance(x, str) and x for x in v),
    "() | ('text',) | ('messages',) | ('question', 'answer'): names of fields",
  )
  template: str = schema.rule(names_template, TEMPLATES)
  reasoning: str = schema.one_of('template', 'think', 'drop')
  unlearned: str = schema.one_of('refuse', 'keep')
  tokenizer: str = schema.or_auto(schema.rule(names_tokenizer, TOKENIZERS))
  seq_len: int = schema.between(2, 2**31)
  packing: str = schema.one_of('concat_then_split', 'best_fit')
  too_long: str = schema.one_of('cut', 'drop')
  attend: str = schema.one_of('document', 'row')
  held_out: float = schema.between(0, 1)
  test: float = schema.between(0, 1)
  seed: int = schema.at_least(0)

  def problems(self) -> Iterator[str]:
    if self.held_out + self.test >= 1:
      yield (
        f'held_out {self.held_out} and test {self.test} leave no document to'
        ' train on; their sum must stay below 1: lower one of them'
      )
