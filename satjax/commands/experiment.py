"""satjax experiment."""

from typing import Any

from satjax import errors
from satjax.commands import shared

SUMMARY = (
  'all runs of an experiment file, and the table that they make; stopped, it'
  ' goes on where it was; --config.KEY=VALUE changes every run'
)
TAKES_OVERRIDES = True
OPTIONS = shared.required(
  {
    'file': shared.value(
      'FILE',
      'such as experiments/sat_rate.py; its docstring says what it'
      ' claims and what it costs',
    ),
    **shared.WORKDIR,
    '--scale': shared.choice(
      ('smoke', 'cpu', 'llm', 'gpu', 'paper'),
      'smoke: one minute, to see that it works (default); cpu: two'
      ' cores, most in half an hour; llm: SmolLM2-135M of `make real-model` on'
      ' two cores, up to six hours; gpu: one accelerator, up to 25 minutes;'
      " paper: the papers' own sizes",
      default='smoke',
    ),
    '--jobs': shared.preset(
      'N', 'runs at a time, each with its share of the cores', 1
    ),
    '--plan': shared.flag(
      'print the runs, their FLOPs and their disk, and run nothing'
    ),
    '--data': shared.value(
      'SOURCE',
      "text of your own, such as 'jsonl:FILE' of pairs or chats, that runs"
      ' train on and are judged by (default: that of the file)',
      default='',
    ),
    '--out': shared.value(
      'DIR',
      'folder of NAME.json, NAME.md and the plots (default: results/'
      ' in the workdir)',
    ),
  },
  '--workdir',
)


def run(options: Any) -> None:
  from satjax.lab.experiment import spec

  if options.jobs < 1:
    raise errors.ConfigError(f'--jobs={options.jobs}: one or more at a time')
  given = options.overrides, options.data
  experiment = spec.load(options.file, options.scale, *given)
  if options.plan:
    from satjax.lab.experiment import cost

    print(cost.render(experiment, options.jobs))
    return
  from satjax.lab.experiment import run as run_lib
  from satjax.lab.report import markdown

  result = run_lib.run(
    experiment, options.workdir, jobs=options.jobs, out=options.out
  )
  print(markdown.markdown(result))
