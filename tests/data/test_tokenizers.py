"""Text survives encoding; ids outside of the bytes do not crash decoding."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from configs import base
from satjax import errors
from satjax.config.run import Config
from satjax.data import tokenizers

BYTE = tokenizers.get_tokenizer('byte')


def test_bytes_are_ids():
  ids = BYTE.encode('aé\n')
  assert ids.dtype == np.uint16
  assert ids.tolist() == [97, 0xC3, 0xA9, 10]
  assert (BYTE.vocab_size, BYTE.bos_id, BYTE.eos_id) == (258, 256, 257)


@hypothesis.given(st.text())
def test_decode_inverts_encode(text):
  assert BYTE.decode(BYTE.encode(text)) == text


@hypothesis.given(st.text(st.characters(codec=None)))
def test_any_str_is_encoded(text):
  """The default alphabet of hypothesis has lone surrogates; UTF-8 has none."""
  ids = BYTE.encode(text)
  assert len(ids) == len(text.encode('utf-8', 'surrogatepass'))
  assert len(BYTE.decode(ids)) >= len(text)


@hypothesis.given(st.lists(st.integers(-(2**40), 2**40)))
def test_decode_accepts_any_ids(ids):
  assert isinstance(BYTE.decode(ids), str)


def test_decode_skips_specials_and_unused_rows():
  assert BYTE.decode([256, 72, 300, 105, 257, -1]) == 'Hi'
  assert BYTE.decode(np.array([[72], [105]])) == 'Hi'
  assert BYTE.decode([]) == ''


def test_decode_replaces_broken_utf8():
  assert BYTE.decode([0xC3, 65]) == '\ufffdA'


def test_lone_surrogate_does_not_crash():
  ids = BYTE.encode('a\ud800b')
  assert len(ids) == 5
  assert BYTE.decode(ids) == 'a\ufffd\ufffd\ufffdb'


def test_fingerprint_is_stable():
  assert BYTE.fingerprint == 'ea06d5a65260f05b0e5238529daa1e2f'


def test_bytes_stand_for_themselves():
  assert BYTE.id_bytes.tolist() == [1] * 256 + [0, 0]
  assert BYTE.prefix_bytes == 0


@pytest.mark.parametrize(
  'spec', ['bpe', '', 'Byte', 'byte:x', 'hf', 'hf:', 'hf: x', 'sentencepiece:']
)
def test_unknown_tokenizers_are_told_the_known_ones(spec):
  with pytest.raises(
    errors.ConfigError, match=f"'{spec}'.*allowed: 'byte'.*'hf:PATH'"
  ):
    tokenizers.get_tokenizer(spec)
  values = base.get_config().to_dict()
  values['data'] |= {'train': ['stdlib:docs'], 'tokenizer': spec}
  with pytest.raises(
    errors.ConfigError, match="data.tokenizer = .*'sentencepiece:PATH'"
  ):
    Config.from_dict(values)


@pytest.mark.parametrize(
  'spec', ['byte', 'hf:a b/c', 'sentencepiece:~/t.model']
)
def test_configurations_name_tokenizers(spec):
  values = base.get_config().to_dict()
  values['data'] |= {'train': ['stdlib:docs'], 'tokenizer': spec}
  assert Config.from_dict(values).data.tokenizer == spec
