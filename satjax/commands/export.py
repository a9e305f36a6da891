"""satjax export."""

from typing import Any

from satjax.commands import shared

SUMMARY = (
  'write a run as a Hugging Face directory: config.json, safetensors,'
  ' tokenizer and model card'
)
OPTIONS = shared.required(
  shared.WORKDIR
  | shared.STEP
  | shared.TOKENIZER
  | shared.OUT
  | {
    '--dtype': shared.choice(
      ('float32', 'bfloat16'),
      'of the stored weights (default: float32)',
      default='float32',
    ),
    '--adapter': shared.flag(
      'of a run with config.lora: the adapters alone, as PEFT loads'
      ' them on the model that the run started from (default: added to it)'
    ),
    '--no_card': shared.flag(
      'leave out the README.md, which says what the model was made of and how'
    ),
  },
  '--workdir',
  '--out',
)


def run(options: Any) -> None:
  from satjax.interop import models, peft, small_files, writer
  from satjax.train import card, saved, subjects

  found = saved.restore(options.workdir, options.step, options.tokenizer)
  model, template, text = found.model, found.encoder.chat.source, ''
  if not options.no_card:
    text = card.write(found, options.workdir, options.adapter)
  if options.adapter:
    lora, adapters = found.config.lora, found.adapters
    contents = small_files.tokenizer_files(found.tokenizer, template)
    contents |= {writer.CARD: text.encode()} if text else {}
    peft.save(
      options.out,
      lora,
      model.config,
      adapters,
      dtype=options.dtype,
      contents=contents,
    )
  else:
    models.save(
      model,
      options.out,
      dtype=options.dtype,
      tokenizer=found.tokenizer,
      stop_id=found.encoder.stop_id,
      seq_len=found.stage.seq_len,
      base=found.base,
      template=template,
      card=text,
    )
    subjects.remember(options.out, found)
  print(f'wrote step {found.step} of {options.workdir} to {options.out}')
