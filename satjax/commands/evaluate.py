"""satjax evaluate."""

import json
from typing import Any

from satjax.commands import shared

SUMMARY = (
  'held-out loss, perplexity and bits per byte of a run or a model; the last'
  ' line of stdout is one JSON object'
)
OPTIONS = shared.MODEL | {
  '--data': {
    'metavar': 'SOURCE',
    'action': 'append',
    'help': 'held-out text, such as stdlib:docs or text:books/*.txt; may be'
    ' given again (default: that of the run, or stdlib:docs)',
  },
  '--seq_len': shared.number(
    'N',
    int,
    'tokens in a row, for a --model directory (default: 256)',
    default=256,
  ),
  '--batches': shared.number(
    'N', int, 'batches of each source, at most (default: as the run, or 16)'
  ),
}


def run(options: Any) -> None:
  from satjax import config as config_lib
  from satjax.train import evaluation

  if shared.is_run(options):
    result = evaluation.evaluate_run(
      options.workdir, options.step, options.data, options.batches
    )
  else:
    sources = tuple(options.data or ['stdlib:docs'])
    data = config_lib.DataConfig(
      train=sources,
      eval=sources,
      tokenizer=options.tokenizer,
      seq_len=options.seq_len,
      held_out=0.05,
      seed=0,
    )
    result = evaluation.evaluate_model(
      options.model, data, max_batches=options.batches or 16
    )
  for source, values in result['eval'].items():
    text = '  '.join(f'{name} {value:.4f}' for name, value in values.items())
    print(f'{source}  {text}')
  print(json.dumps(result))
