"""A sentencepiece model as a tokenizer.json that gives the same ids.

transformers 5 reads a tokenizer.model by rules of its own, under which a space
at the beginning of a text is lost.
"""

from pathlib import Path

from satjax.interop import gguf_tokenizer


def described(content: bytes) -> bytes | None:
  """The tokenizer.json; None: the model does what none is known for.

  Pairs of pieces in text as it stands are known, as Llama 2 and Mistral read;
  other kinds and normalised text are not.

  Args:
    content: of a tokenizer.model.
  """
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto.FromString(content)
  trained, text = model.trainer_spec, model.normalizer_spec
  if (
    trained.model_type != trained.BPE
    or trained.treat_whitespace_as_suffix
    or text.precompiled_charsmap
    or text.remove_extra_whitespaces
    or not text.escape_whitespaces
  ):
    return None
  values = {
    'model': 'llama',
    'tokens': [piece.piece for piece in model.pieces],
    'scores': [piece.score for piece in model.pieces],
    'token_type': [piece.type for piece in model.pieces],
    'add_space_prefix': text.add_dummy_prefix,
  }
  ids = {
    'bos': trained.bos_id,
    'eos': trained.eos_id,
    'unknown': trained.unk_id,
  }
  values |= {f'{name}_token_id': i for name, i in ids.items() if i >= 0}
  fields = {gguf_tokenizer.PREFIX + name: one for name, one in values.items()}
  made = gguf_tokenizer.files_of(Path('tokenizer.model'), fields)
  return made['tokenizer.json']
