"""satjax generate."""

import json
import operator
import pathlib
import statistics
import sys
from typing import Any

from satjax import errors
from satjax.commands import shared

SUMMARY = 'continue a text, or several, with a run or a model'
OPTIONS = shared.MODEL | {
  '--prompt': shared.value(
    'TEXT',
    'text to continue (default: none); may be given several times',
    action='append',
  ),
  '--max_tokens': shared.preset('N', 'new tokens, at most', 128),
  '--temperature': shared.value(
    'T',
    '0: always the most likely token (default); 1: sample',
    float,
    default=0.0,
  ),
  '--top_p': shared.preset(
    'P',
    'sample among the most likely tokens alone that have this probability'
    ' together; 1: all',
    1.0,
  ),
  '--stop': shared.value(
    'TEXT',
    'end before this text; may be given several times',
    action='append',
    default=[],
  ),
  '--draft': shared.value(
    'DRAFT',
    'smaller model that proposes tokens, for speed: a Hugging Face'
    ' directory; a number, for as many of the first layers of the model; or'
    ' before_growth:N of --workdir',
  ),
  '--num_draft': shared.preset('N', 'tokens that it proposes at a time', 4),
  '--compare': shared.flag(
    'generate without the draft too, five times in turns, and say how'
    ' much faster it is with it'
  ),
  '--chat': shared.flag(
    'a prompt is what a user says in a chat; the answer ends where'
    ' the model stops'
  ),
  '--template': shared.TEXT['--template'],
  '--seed': shared.preset('N', 'of the sampling', 0),
}


def run(options: Any) -> None:
  from satjax.generation import generate

  if options.compare and not options.draft:
    raise errors.ConfigError('--compare needs --draft=DRAFT')
  model, tokenizer = shared.open_model(options)
  draft = _open_draft(options, model, tokenizer) if options.draft else None
  prompts, end_ids = options.prompt or [''], model.end_ids
  if options.chat:
    prompts, stop_id = _chat(options, prompts, tokenizer)
    end_ids = (*end_ids, stop_id)
  named = ('max_tokens', 'temperature', 'top_p', 'seed', 'stop')
  asked = {name: getattr(options, name) for name in named}
  how = generate.Options(**asked, end_ids=end_ids, is_answer=options.chat)
  task = (model.config, model.params, tokenizer, prompts, how, draft)
  if options.compare:
    drafted, plain = generate.compare(*task)
  else:
    drafted, plain = [generate.run(*task)], []
  texts = drafted[0].texts
  if not options.chat:
    texts = map(''.join, zip(prompts, texts))
  print('\n\n'.join(texts), flush=True)  # an empty line between the texts
  if options.chat and not all(map(str.strip, drafted[0].texts)):
    print(
      'an answer is empty: was the model trained on chats of this --template?',
      file=sys.stderr,
    )
  if draft:
    line = _describe(drafted, plain, greedy=options.temperature == 0)
    print(f'draft: {line}', file=sys.stderr)


def _chat(options, prompts, tokenizer):
  """Ids of a chat with each prompt, and the token that ends an answer."""
  from satjax.data.documents import Message
  from satjax.data.encode import Encoder
  from satjax.train import workdir

  how = ()
  if options.workdir:
    data = workdir.read_config(options.workdir).data
    how = data.template, data.reasoning
  encoder = Encoder(
    tokenizer, *(how or [shared.template_of(options, tokenizer)])
  )
  if not all(prompts):
    raise errors.ConfigError('--chat needs --prompt=TEXT, what the user says')
  chats = [encoder.prompt([Message('user', text)]) for text in prompts]
  return chats, encoder.stop_id


def _open_draft(options, model, tokenizer):
  from satjax.generation import speculative
  from satjax.interop import models
  from satjax.train import saved

  name, num_tokens = options.draft, options.num_draft
  if name.isdigit():
    return speculative.first_layers(
      model.config, model.params, int(name), num_tokens
    )
  if not name.startswith('before_growth:'):
    _refuse_other_tokenizer(name, tokenizer)
    small = models.load(name)
  elif options.workdir:
    small = saved.restore(options.workdir, name).model
  else:
    raise errors.ConfigError(
      f'--draft={name} is a checkpoint of a run; name it with --workdir=DIR'
    )
  return speculative.Draft(small.config, small.params, num_tokens)


def _refuse_other_tokenizer(directory, tokenizer):
  """Raises ConfigError if the vocabulary in a directory is another one."""
  files = tokenizer.files()
  for name in {'tokenizer.json', 'tokenizer.model'} & set(files):
    path = pathlib.Path(directory) / name
    if path.is_file() and (
      _vocabulary(path.read_bytes()) != _vocabulary(files[name])
    ):
      raise errors.ConfigError(
        f'{path} has another vocabulary than {tokenizer.name}; a draft needs'
        ' the tokenizer of the model'
      )


def _vocabulary(content):
  """Tokens and ids of a tokenizer.json; another file as it is."""
  try:
    return json.loads(content)['model']['vocab']
  except (ValueError, KeyError, TypeError):
    return content


def _describe(drafted, plain, greedy):
  """One line; with `plain`, of pairs that were timed."""
  first = drafted[0]
  share = first.accepted / max(first.proposed, 1)
  parts = [
    f'{first.accepted} of {first.proposed} tokens accepted ({share:.1%})',
    f'{1 + first.accepted / max(first.passes, 1):.2f} tokens a pass',
  ]
  if plain and greedy:
    same = sum(map(operator.eq, first.texts, plain[0].texts))
    parts.append(f'{same} of {len(first.texts)} texts as without it')
  if plain:
    ratios = sorted(b.seconds / a.seconds for a, b in zip(drafted, plain))
    seconds = statistics.median(one.seconds for one in drafted)
    parts += [
      f'{first.num_tokens / seconds:,.0f} tokens/s',
      f'{statistics.median(ratios):.2f} times as fast as without it'
      f' ({ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} pairs)',
    ]
  return ', '.join(parts)
