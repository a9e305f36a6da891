"""satjax fetch."""

from typing import Any

from satjax import hub
from satjax.commands import shared

SUMMARY = (
  'make a model directory of a model of the Hugging Face hub, a GGUF file or'
  ' another directory'
)
OPTIONS = {
  'source': {'metavar': 'MODEL', 'help': hub.FORMS},
  **shared.required(shared.OUT, '--out'),
  '--dtype': shared.choice(
    ('float32', 'bfloat16'),
    'of the weights of a GGUF file (default: float32)',
    default='float32',
  ),
}


def run(options: Any) -> None:
  from satjax.interop import gguf_files, huggingface

  found = hub.local(options.source)
  if found.suffix == '.gguf':
    gguf_files.convert(found, options.out, dtype=options.dtype)
  else:
    huggingface.copy(found, options.out)
  print(f'wrote {options.source} to {options.out}')
