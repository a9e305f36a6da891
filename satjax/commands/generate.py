"""satjax generate."""

from typing import Any

from satjax.commands import shared

SUMMARY = 'continue a text, or several, with a run or a model'
OPTIONS = (
  shared.MODEL
  | {
    '--prompt': {
      'metavar': 'TEXT',
      'action': 'append',
      'help': 'text to continue (default: none); may be given several times',
    },
    '--max_tokens': shared.number(
      'N', int, 'new tokens, at most (default: 128)', default=128
    ),
    '--temperature': shared.number(
      'T',
      float,
      '0: always the most likely token (default); 1: sample',
      default=0.0,
    ),
    '--top_p': shared.number(
      'P',
      float,
      'sample among the most likely tokens alone that have this probability'
      ' together (default: 1, all)',
      default=1.0,
    ),
    '--stop': {
      'metavar': 'TEXT',
      'action': 'append',
      'default': [],
      'help': 'end before this text; may be given several times',
    },
  }
  | shared.SEED
)


def run(options: Any) -> None:
  from satjax import generate

  model, tokenizer = shared.open_model(options)
  prompts = options.prompt or ['']
  texts = generate.generate(
    model.config,
    model.params,
    tokenizer,
    prompts,
    max_tokens=options.max_tokens,
    temperature=options.temperature,
    top_p=options.top_p,
    seed=options.seed,
    stop=options.stop,
  )
  # An empty line between the texts.
  print('\n\n'.join(map(''.join, zip(prompts, texts))))
