"""Tiny subword tokenizers, trained on the standard library in a second."""

import functools
import io
import itertools
import json

import sentencepiece
import tokenizers as library

from satjax.data import sources, tokenizers

VOCAB = 600
KINDS = ('byte', 'llama', 'sentencepiece', 'bytelevel')
SPECIALS = ['<unk>', '<s>', '</s>']


@functools.cache
def lines():
  """Some lines of some of the standard library."""
  some = itertools.islice(sources.documents('stdlib:code'), 60)
  lines = '\n'.join(document.text for document in some).split('\n')[::40]
  return [line for line in lines if line.strip()]


def _bpe(special, **options):
  tokenizer = library.Tokenizer(library.models.BPE(**options))
  return tokenizer, library.trainers.BpeTrainer(
    vocab_size=VOCAB, special_tokens=special, show_progress=False
  )


@functools.cache
def _llama_like():
  """As the tokenizer.json of Llama 2: byte fallback, a space before a text."""
  pieces = library.decoders
  byte_tokens = [f'<0x{byte:02X}>' for byte in range(256)]
  tokenizer, trainer = _bpe(
    SPECIALS + byte_tokens, byte_fallback=True, unk_token='<unk>'
  )
  tokenizer.normalizer = library.normalizers.Sequence(
    [
      library.normalizers.Prepend('\u2581'),
      library.normalizers.Replace(' ', '\u2581'),
    ]
  )
  tokenizer.decoder = pieces.Sequence(
    [
      pieces.Replace('\u2581', ' '),
      pieces.ByteFallback(),
      pieces.Fuse(),
      pieces.Strip(' ', 1, 0),
    ]
  )
  tokenizer.train_from_iterator(lines(), trainer)
  described = json.loads(tokenizer.to_str())
  described['added_tokens'] = described['added_tokens'][:3]
  # As in some downloads: an end that the file does not call special.
  described['added_tokens'][2]['special'] = False
  return json.dumps(described)


@functools.cache
def byte_level():
  """As GPT-2's: nothing begins a text; and one token beyond a gap of ids."""
  tokenizer, trainer = _bpe(['<|endoftext|>'])
  trainer.initial_alphabet = library.pre_tokenizers.ByteLevel.alphabet()
  tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(False)
  tokenizer.decoder = library.decoders.ByteLevel()
  tokenizer.train_from_iterator(lines(), trainer)
  described = json.loads(tokenizer.to_str())
  extra = described['added_tokens'][0] | {'id': VOCAB, 'content': '<|x|>'}
  described['added_tokens'].append(extra)
  return json.dumps(described)


def chatml(root):
  """A tokenizer like GPT-2's that has the markers of ChatML."""
  described = json.loads(byte_level())
  for name in ('<|im_start|>', '<|im_end|>'):
    last = described['added_tokens'][-1]
    described['added_tokens'].append(
      last | {'id': last['id'] + 1, 'content': name}
    )
  (root / 'chatml.json').write_text(json.dumps(described))
  return tokenizers.get_tokenizer(f'hf:{root}/chatml.json')


def llama_like():
  return json.loads(_llama_like())


def sentencepiece_model(**options):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines()),
    model_writer=model,
    vocab_size=VOCAB,
    model_type='bpe',
    byte_fallback=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    num_threads=1,
    minloglevel=2,
    **options,
  )
  return model.getvalue()


def write(root):
  """Writes one of each kind; what configurations call them, by kind."""
  (root / 'llama').mkdir()
  (root / 'llama' / 'tokenizer.json').write_text(_llama_like())
  begin = {'__type': 'AddedToken', 'content': '<s>'}
  (root / 'llama' / 'tokenizer_config.json').write_text(
    json.dumps({'bos_token': begin, 'eos_token': '</s>', 'add_bos_token': True})
  )
  (root / 'gpt.json').write_text(byte_level())
  (root / 'sp.model').write_bytes(sentencepiece_model())
  return {
    'byte': 'byte',
    'llama': f'hf:{root}/llama',
    'bytelevel': f'hf:{root}/gpt.json',
    'sentencepiece': f'sentencepiece:{root}/sp.model',
  }
