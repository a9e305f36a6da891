"""What the commands say of themselves, and the options that they share."""

DESCRIPTION = """\
satjax makes training large language models cheaper: sparsity-accelerated
training (SAT) and model growth, in JAX.

  satjax train --config=configs/tiny.py --workdir=runs/tiny
  satjax plan --config=configs/quickstart.py
  satjax plan --params=7e9 --tokens=2e12
  satjax generate --workdir=runs/tiny --prompt='def '
  satjax export --workdir=runs/tiny --out=models/tiny
  satjax report runs/tiny --out=report.html

`satjax COMMAND --help` says more. Every key of a configuration can be given on
the command line, such as --config.train.num_steps=100; configs/base.py lists
them with their units.
"""
EXIT_CODES = """\
exit codes: 0 done; 75 stopped and saved, run the same command again; 78 bad
configuration; 65 bad data or checkpoint; 74 input/output; 70 the loss is no
longer finite, or an internal error
"""

OPTIONS = {
  '--config': {
    'metavar': 'FILE',
    'help': 'Python file with get_config(), or the config.json of a run;'
    ' FILE.py:ARGUMENT calls get_config(ARGUMENT)',
  },
  '--params': {
    'metavar': 'N',
    'type': float,
    'help': 'parameters of the model that growth ends with, such as 7e9',
  },
  '--tokens': {
    'metavar': 'N',
    'type': float,
    'help': 'tokens of training it from scratch, such as 2e12',
  },
  '--factor': {
    'metavar': 'G',
    'type': float,
    'help': 'how many times its base model it is (default: 4)',
  },
  'workdirs': {'metavar': 'DIR', 'nargs': '+', 'help': 'folders of runs'},
  '--workdir': {'metavar': 'DIR', 'help': 'folder of a run'},
  '--model': {
    'metavar': 'MODEL_DIR',
    'help': 'Hugging Face directory, instead of --workdir',
  },
  '--step': {
    'metavar': 'N',
    'type': int,
    'help': 'checkpoint to take, in completed steps (default: the newest)',
  },
  '--out': {'metavar': 'PATH', 'help': 'what to write'},
  '--data': {
    'metavar': 'SOURCE',
    'action': 'append',
    'help': 'held-out text, such as stdlib:docs or text:books/*.txt; may be'
    ' given again (default: that of the run, or stdlib:docs)',
  },
  '--tokenizer': {
    'metavar': 'TOKENIZER',
    'default': 'byte',
    'help': 'of a --model directory (default: byte)',
  },
  '--seq_len': {
    'metavar': 'N',
    'type': int,
    'default': 256,
    'help': 'tokens in a row, for a --model directory (default: 256)',
  },
  '--batches': {
    'metavar': 'N',
    'type': int,
    'help': 'batches of each source, at most (default: as the run, or 16)',
  },
  '--prompt': {'metavar': 'TEXT', 'default': '', 'help': 'text to continue'},
  '--max_tokens': {
    'metavar': 'N',
    'type': int,
    'default': 128,
    'help': 'new tokens, at most (default: 128)',
  },
  '--temperature': {
    'metavar': 'T',
    'type': float,
    'default': 0.0,
    'help': '0: always the most likely token (default); 1: sample',
  },
  '--seed': {
    'metavar': 'N',
    'type': int,
    'default': 0,
    'help': 'of the sampling (default: 0)',
  },
  '--dtype': {
    'choices': ('float32', 'bfloat16'),
    'default': 'float32',
    'help': 'of the stored weights (default: float32)',
  },
  '--rates': {
    'metavar': 'RATE',
    'nargs': '*',
    'type': float,
    'default': (0.25, 0.5, 0.75),
    'help': 'omission rates of heads and channels (default: 0.25 0.5 0.75)',
  },
  '--forwards': {
    'nargs': '*',
    'choices': ('skip', 'mean', 'exact'),
    'default': ('skip', 'exact'),
    'help': 'what the omitted part does in the forward pass (default: skip'
    ' exact)',
  },
  '--rounds': {
    'metavar': 'N',
    'type': int,
    'default': 21,
    'help': 'paired rounds (default: 21)',
  },
}
