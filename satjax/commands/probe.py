"""satjax probe."""

from typing import Any

from satjax.commands import shared

SUMMARY = (
  'what leaving out heads, channels and layers, in the forward pass too, costs'
  ' a model at once, without training, and which rates by layer cost least for'
  ' a wanted saving; `satjax train --allocation=FILE.json` trains with them'
)
OPTIONS = (
  shared.MODEL
  | {
    '--data': shared.value(
      'SOURCE',
      'text to look at, such as text:books/*.txt (default: stdlib:docs, or'
      ' config.data.eval of the run)',
    ),
    '--saving': shared.value(
      'SHARE',
      "of a step's FLOPs, on rows of --seq_len, that the rates are to save"
      ' (default: 0.3)',
      float,
      default=0.3,
    ),
    '--sizes': shared.value(
      'N',
      'groups of layers in a row that keep the same, at most: each is compiled'
      ' by itself (default: 4)',
      int,
      default=4,
    ),
    '--channel_multiple': shared.value(
      'N',
      'kept channels are a multiple, as in config.sparsity (default: 64)',
      int,
      default=64,
    ),
    '--rows': shared.value(
      'N',
      'of text that units are scored on, and as many others that losses are'
      ' of (default: 4)',
      int,
      default=4,
    ),
    '--seq_len': shared.value(
      'N', 'tokens in a row (default: 128)', int, default=128
    ),
  }
  | shared.OUT
)


def run(options: Any) -> None:
  from satjax.lab.bench import table as bench_table
  from satjax.lab.probe import probe
  from satjax.lab.report import probes

  bench_table.check(options.out)
  names = ('saving', 'sizes', 'channel_multiple', 'rows', 'seq_len')
  found = probe.of_subject(
    shared.open_subject(options),
    source=options.data,
    **{name: getattr(options, name) for name in names},
  )
  print(probes.text(found))
  if options.out:
    bench_table.write(options.out, found, probes.markdown(found))
    print(f'wrote {options.out}; satjax train --allocation={options.out}')
