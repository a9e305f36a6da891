"""The tokenizer of a GGUF file, in the files that Hugging Face reads.

A GGUF file names how text is cut before pairs are merged, and leaves the rule
to its readers. Only rules that are written down here are taken; another would
give other ids without a word.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from satjax import console, errors, files
from satjax.interop import weights

PREFIX = 'tokenizer.ggml.'
_SPACE = '▁'
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5  # of token_type
# How text is cut: letters, runs of digits of at most so many, other signs.
_CUT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
  r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# By tokenizer.ggml.pre: '' is GPT-2's own rule, 'digits' the same after every
# digit is parted from the others; else an expression.
_RULES = {
  'gpt-2': '',
  'smollm': 'digits',
  'starcoder': 'digits',
  'refact': 'digits',
  'command-r': 'digits',
  'llama-bpe': _CUT.format(digits='{1,3}'),
  'llama3': _CUT.format(digits='{1,3}'),
  'qwen2': _CUT.format(digits=''),
}
# Here what is a token is not cut, and a text begins with one (llama.cpp).
_LLAMA3 = ('llama-bpe', 'llama3')
_RANKS = {'gpt2': 'merges', 'llama': 'scores'}  # by tokenizer.ggml.model


def files_of(file: Path, fields: Mapping[str, Any]) -> dict[str, bytes]:
  """tokenizer.json and tokenizer_config.json.

  Raises:
    DataError: the kind of tokenizer is not known, or a part of it is missing.
  """
  import tokenizers

  get = _getter(fields)
  weights.refuse(file, [*_problems(get)])
  is_bytes = get('model') == 'gpt2'
  made = _byte_level(file, get) if is_bytes else _sentencepiece(get)
  for number, (token, kind) in enumerate(zip(get('tokens'), _kinds(get))):
    if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
      special = kind != _USER_DEFINED
      added = tokenizers.AddedToken(token, special=special, normalized=False)
      add = made.add_special_tokens if special else made.add_tokens
      add([added])
      if made.token_to_id(token) != number:
        raise errors.DataError(f'{file}: two tokens are called {token!r}')
  ends = _around(get)
  if any(ends):
    before, after = ([name] if name else [] for name in ends)
    made.post_processor = tokenizers.processors.TemplateProcessing(
      single=[*before, '$A', *after],
      pair=[*before, '$A', *after, *before, '$B:1', *after],
      special_tokens=[(x, made.token_to_id(x)) for x in {*before, *after}],
    )
  return {
    'tokenizer.json': made.to_str().encode(),
    'tokenizer_config.json': files.to_json(_settings(get, fields)),
  }


def ids_of(fields: Mapping[str, Any]) -> dict[str, Any]:
  """generation_config.json: ids that begin, end and fill up a text."""
  get = _getter(fields)
  ends = [get(f'{name}_token_id') for name in ('eos', 'eot', 'eom')]
  ends = list(dict.fromkeys(end for end in ends if end is not None))
  pad = get('padding_token_id')
  return {
    'bos_token_id': get('bos_token_id'),
    'eos_token_id': ends[0] if len(ends) == 1 else ends or None,
    **({} if pad is None else {'pad_token_id': pad}),
  }


def _getter(fields):
  return lambda name, default=None: fields.get(PREFIX + name, default)


def _problems(get):
  """What is not known, or missing, or named and not there."""
  model, tokens = get('model'), get('tokens') or ()
  if model not in _RANKS:
    yield (
      f'{PREFIX}model = {errors.brief(model)}; supported: {", ".join(_RANKS)};'
      ' of others, take the safetensors directory'
    )
    return
  for name in ('tokens', _RANKS[model]):
    if get(name) is None:
      yield f'{PREFIX}{name} is missing'
  for name in ('scores', 'token_type'):
    if get(name) and len(get(name)) != len(tokens):
      yield f'{PREFIX}{name}: found {len(get(name))}, expected {len(tokens)}'
  for name in ('bos', 'eos', 'eot', 'eom', 'unknown', 'padding'):
    number = get(f'{name}_token_id', 0)
    if tokens and not 0 <= number < len(tokens):
      yield f'{PREFIX}{name}_token_id = {number}; allowed: below {len(tokens)}'
  known = {*tokens}
  for pair in get('merges') or ():
    if not {*pair.split(' ', 1), pair.replace(' ', '', 1)} <= known:
      yield f'{PREFIX}merges: {pair!r} is no pair of tokens that are one'
      return


def _vocab(get):
  """Ids by token, without rows that only fill the tables up."""
  named = enumerate(zip(get('tokens'), _kinds(get)))
  return {
    token: number
    for number, (token, kind) in named
    if kind != _UNUSED or token != f'[PAD{number}]'
  }


def _kinds(get):
  return get('token_type') or [1] * len(get('tokens'))


def _around(get):
  """The tokens that are put before and after a text; None: none."""
  begins = get('model') == 'llama' or get('pre') in _LLAMA3
  wanted = {
    'bos': get('add_bos_token', begins),
    'eos': get('add_eos_token', False),
  }
  numbers = {name: get(f'{name}_token_id') for name in wanted}
  return [
    get('tokens')[numbers[name]]
    if is_wanted and numbers[name] is not None
    else None
    for name, is_wanted in wanted.items()
  ]


def _settings(get, fields):
  """tokenizer_config.json."""
  named = {
    f'{ours}_token': get('tokens')[number]
    for ours, theirs in (
      *(('bos', 'bos'), ('eos', 'eos')),
      *(('unk', 'unknown'), ('pad', 'padding')),
    )
    if (number := get(f'{theirs}_token_id')) is not None
  }
  begin, end = _around(get)
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': None,
    **named,
    'add_bos_token': begin is not None,
    'add_eos_token': end is not None,
    'clean_up_tokenization_spaces': False,
  }
  default = fields.get('tokenizer.chat_template')
  others = fields.get('tokenizer.chat_templates') or []
  if others:
    named = {'default': default} | {
      name: fields[f'tokenizer.chat_template.{name}'] for name in others
    }
    settings['chat_template'] = [
      {'name': name, 'template': text} for name, text in named.items() if text
    ]
  elif default:
    settings['chat_template'] = default
  return settings


def _byte_level(file, get):
  """Pairs of bytes (Radford et al., 2019)."""
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

  rule = get('pre')
  if rule is None:
    rule = 'gpt-2'
    console.say(
      f'{file} does not say how text is cut ({PREFIX}pre); it is cut as GPT-2'
      ' does, which may not be how the model learned it'
    )
  if rule not in _RULES:
    raise errors.DataError(
      f'{file}: tokenizer.ggml.pre = {errors.brief(rule)}, a way to cut text'
      f' that is not known here; supported: {", ".join(_RULES)}; take the'
      ' safetensors directory of the model'
    )
  made = Tokenizer(
    models.BPE(
      vocab=_vocab(get),
      merges=[tuple(pair.split(' ', 1)) for pair in get('merges')],
      ignore_merges=rule in _LLAMA3,
    )
  )
  first, own = _RULES[rule], _RULES[rule] in ('', 'digits')
  parts = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)]
  if first == 'digits':
    parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
  elif first:
    parts.insert(0, pre_tokenizers.Split(Regex(first), 'isolated'))
  made.pre_tokenizer = pre_tokenizers.Sequence(parts)
  if rule == 'qwen2':
    from tokenizers import normalizers

    made.normalizer = normalizers.NFC()
  made.decoder = decoders.ByteLevel()
  return made


def _sentencepiece(get):
  """Pairs of pieces, by score (Kudo and Richardson, 2018)."""
  from tokenizers import Tokenizer, decoders, models, normalizers

  tokens, vocab = get('tokens'), _vocab(get)
  unknown = get('unknown_token_id')
  made = Tokenizer(
    models.BPE(
      vocab=vocab,
      merges=_merges(vocab, get('scores'), _kinds(get)),
      unk_token=None if unknown is None else tokens[unknown],
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  spaces = normalizers.Replace(' ', _SPACE)
  steps = [decoders.Replace(_SPACE, ' '), decoders.ByteFallback()]
  steps.append(decoders.Fuse())
  if get('add_space_prefix', True):
    spaces = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
    steps.append(decoders.Strip(' ', 1, 0))
  made.normalizer = spaces
  made.decoder = decoders.Sequence(steps)
  return made


def _merges(vocab, scores, kinds):
  """Pairs of pieces that make a piece, the one of the highest score first."""
  found = []
  for token, number in vocab.items():
    if kinds[number] != 1:
      continue
    pairs = (
      (token[:cut], token[cut:])
      for cut in range(1, len(token))
      if token[:cut] in vocab and token[cut:] in vocab
    )
    ranked = sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    found += [(scores[number], pair) for pair in ranked]
  return [pair for _, pair in sorted(found, key=lambda one: -one[0])]
