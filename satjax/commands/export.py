"""satjax export."""

from typing import Any

from satjax.commands import shared

SUMMARY = (
  'write a run as a Hugging Face directory: config.json, safetensors and'
  ' tokenizer'
)
OPTIONS = shared.required(
  shared.WORKDIR
  | shared.STEP
  | shared.OUT
  | {
    '--dtype': {
      'choices': ('float32', 'bfloat16'),
      'default': 'float32',
      'help': 'of the stored weights (default: float32)',
    },
  },
  '--workdir',
  '--out',
)


def run(options: Any) -> None:
  from satjax.interop import models
  from satjax.train import saved

  found = saved.restore(options.workdir, options.step)
  models.save(
    found.model,
    options.out,
    dtype=options.dtype,
    tokenizer=found.tokenizer,
    seq_len=found.stage.seq_len,
  )
  print(f'wrote step {found.step} of {options.workdir} to {options.out}')
