"""satjax probe."""

from typing import Any

from satjax.commands import shared

SUMMARY = (
  'what leaving out heads, channels and layers, in the forward pass too, costs'
  ' a model at once, without training, and which rates by layer cost least for'
  ' a wanted saving; `satjax train --allocation=FILE.json` trains with them'
)
_SIZES = {
  '--saving': shared.preset(
    'SHARE',
    "of a step's FLOPs, on rows of --seq_len, that the rates are to save",
    0.3,
  ),
  '--sizes': shared.preset(
    'N',
    'groups of layers in a row that keep the same, at most: each is compiled'
    ' by itself',
    4,
  ),
  '--channel_multiple': shared.preset(
    'N', 'kept channels are a multiple, as in config.sparsity', 64
  ),
  '--rows': shared.preset(
    'N',
    'of text that units are scored on, and as many others that losses are of',
    4,
  ),
  '--seq_len': shared.preset('N', 'tokens in a row', 128),
}
OPTIONS = (
  shared.MODEL
  | {
    '--data': shared.value(
      'SOURCE',
      'text to look at, such as text:books/*.txt (default: stdlib:docs, or'
      ' config.data.eval of the run)',
    ),
  }
  | _SIZES
  | shared.OUT
)


def run(options: Any) -> None:
  from satjax.lab.bench import table as bench_table
  from satjax.lab.probe import probe
  from satjax.lab.report import probes

  bench_table.check(options.out)
  found = probe.of_subject(
    shared.open_subject(options),
    source=options.data,
    **{flag[2:]: getattr(options, flag[2:]) for flag in _SIZES},
  )
  print(probes.text(found))
  if options.out:
    bench_table.write(options.out, found, probes.markdown(found))
    print(f'wrote {options.out}; satjax train --allocation={options.out}')
