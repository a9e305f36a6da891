"""Quickstart with a real model: fine-tune SmolLM2-135M-Instruct, export, ask.

Claim     a model of today learns a small task on two cores in minutes, keeps
          what else it knows, and answers from its own export.
Runs      adapters (LoRA), trained on chats about what functions and classes of
          Python's standard library do: an answer is the first sentence of the
          documentation. Loss and answers before and after, of modules that were
          kept out.
Cost      under ten minutes on two cores, the download of the model aside.
Command   make quickstart-llm
Result    printed, and written to WORKDIR/quickstart.md. Run again, it goes on
          where it was stopped; a finished one is shown again. One seed: this
          shows how things work; it is no evidence about a method.
"""

import argparse
import contextlib
import io
import json
import pathlib
import re
import shlex
import shutil
import sys

from rich import console as rich_console
from rich import table as rich_table
from rich import text as rich_text

from satjax import cli, errors, runtime
from satjax.data import sources
from satjax.data.documents import Message
from satjax.data.encode import Encoder
from satjax.generation import generate
from satjax.interop import models
from satjax.train import metrics

CONFIG = 'configs/quickstart_llm.py'
# Modules of which no chat is trained; two of the questions are about them.
KEPT_OUT = ('json', 'pathlib', 'shutil', 'statistics', 'textwrap', 'zipfile')
QUESTIONS = (
  'What does `shutil.copytree` do in Python?',
  'What does `statistics.median` do in Python?',
  'What is the capital of France?',
)


class Stop(Exception):
  """A command failed, and has said why."""


def chats() -> dict[str, list[dict]]:
  """Questions about Python with their answers, 'train' and 'validation'."""
  found, seen = {'train': [], 'validation': []}, set()
  for document in sources.documents('stdlib:docstrings'):
    name = document.id.partition('#')[2]
    prompt, docstring = (turn.content for turn in document.messages)
    paragraph = ' '.join(docstring.partition('\n\n')[0].split())
    answer = re.split(r'(?<=[.!?])\s', paragraph)[0]
    is_public = not re.search(r'(^|\.)(_|test)', name)
    is_sentence = re.fullmatch(r'[A-Z].{18,158}\.', answer)
    if not (is_public and is_sentence) or answer in seen:
      continue
    seen.add(answer)
    is_class = prompt.partition('\n\n')[2].startswith('class')
    asked = f'What is `{name}`' if is_class else f'What does `{name}` do'
    chat = [
      {'role': 'user', 'content': f'{asked} in Python?'},
      {'role': 'assistant', 'content': answer},
    ]
    split = 'validation' if name.split('.')[0] in KEPT_OUT else 'train'
    found[split].append({'messages': chat})
  return found


def write_chats(folder: pathlib.Path) -> str:
  """Writes them, and the language reference as other text; counts them."""
  documents = sources.documents('stdlib:docs')
  other = [{'text': d.text} for d in documents if 'topics' in d.id]
  found = chats()
  folder.mkdir(parents=True, exist_ok=True)
  for name, records in {**found, 'other': other}.items():
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (folder / f'{name}.jsonl').write_text(lines, encoding='utf-8')
  return (
    f'{len(found["train"]):,} chats to train on in {folder}, and'
    f' {len(found["validation"])} about other modules to validate with'
  )


def answers(directory: str | pathlib.Path) -> list[str]:
  """What a model answers, greedy, in chats of its own template."""
  tokenizer = models.tokenizer_of(directory)
  model = models.load(directory, tokenizer)
  encoder = Encoder(tokenizer, models.template_of(directory, tokenizer))
  asked = [encoder.prompt([Message('user', text)]) for text in QUESTIONS]
  how = generate.Options(
    max_tokens=64, end_ids=(*model.end_ids, encoder.stop_id), is_answer=True
  )
  return generate.run(model.config, model.params, tokenizer, asked, how).texts


def loss_table(records: list[dict]) -> rich_table.Table:
  """Losses before the first step and after the last."""
  table = rich_table.Table(title='Loss in nats a token')
  table.add_column('of', overflow='fold')
  for name in ('before', 'after', 'change'):
    table.add_column(name, justify='right', overflow='fold')
  first, last = (
    next(r for r in found if any(name.startswith('eval/') for name in r))
    for found in (records, records[::-1])
  )
  names = {
    'validation': 'answers about modules kept out (the task)',
    'other': 'the language reference of Python (other text)',
  }
  for name in (name for name in first if name.startswith('eval/')):
    before, after = first[name], last[name]
    change = f'{after - before:+.3f}'
    what = names[pathlib.PurePath(name.removesuffix('.jsonl/loss')).name]
    table.add_row(what, f'{before:.3f}', f'{after:.3f}', change)
  return table


def answer_table(before: list[str], after: list[str]) -> rich_table.Table:
  table = rich_table.Table(
    title='Answers, greedy, at most 64 tokens', show_lines=True
  )
  for name in ('question', 'before', 'after'):
    ratio = 1 if name == 'question' else 2
    table.add_column(name, ratio=ratio, overflow='fold')
  for row in zip(QUESTIONS, before, after):
    table.add_row(*map(rich_text.Text, row))
  return table


def call(console: rich_console.Console, *words: str) -> None:
  """Shows a command of satjax, and what it prints.

  Raises:
    Stop: it failed, and has said why.
  """
  say(console, f'$ satjax {shlex.join(words)}', style='bold')
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed):
    code = cli.main(words)
  say(console, printed.getvalue())
  if code:
    raise Stop(code)


def say(console: rich_console.Console, text: str, style: str = '') -> None:
  """Prints a text as it is, on as many lines as it needs."""
  console.print(
    text, style=style, markup=False, highlight=False, soft_wrap=True
  )


def run_all(
  model: str, workdir: pathlib.Path, console: rich_console.Console
) -> None:
  run, out = workdir / 'run', str(workdir / 'model')
  console.rule('1 of 4: chats, and what the model answers as it is')
  say(console, write_chats(workdir / 'chats'))
  before = answers(model)
  console.rule('2 of 4: fine-tuning, adapters of rank 16')
  train = (
    'train',
    f'--config={CONFIG}:{workdir / "chats"}',
    f'--workdir={run}',
    f'--config.model.init_from={model}',
  )
  call(console, *train)
  console.rule('3 of 4: export, and what the export answers')
  call(console, 'export', f'--workdir={run}', f'--out={out}')
  after = answers(out)
  console.print(loss_table(metrics.read(run)))
  console.print(answer_table(before, after))
  console.rule('4 of 4: the chat of the export, on the command line')
  call(
    console, 'generate', f'--model={out}', '--chat', f'--prompt={QUESTIONS[0]}'
  )
  console.print(
    'One seed: this shows how things work; it is no evidence about a method.\n'
  )
  say(console, how_to_go_on(model, train))


def how_to_go_on(model: str, train: tuple[str, ...]) -> str:
  return (
    'How to go on (source .venv/bin/activate first):\n'
    'longer: satjax '
    f'{shlex.join([*train, "--config.train.num_steps=300"])}\n'
    'your own chats (docs/fine_tune_on_my_chats.md): satjax train'
    " --config=configs/smollm2_lora.py:'jsonl:chats/*.jsonl'"
    f' --workdir=runs/chats --config.model.init_from={model}\n'
    'a bigger model: satjax fetch HuggingFaceTB/SmolLM2-360M-Instruct'
    ' --out=models/bigger, and --config.model.init_from=models/bigger'
  )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--model', default='models/smollm2', help='MODEL_DIR')
  options = parser.parse_args()
  if not (pathlib.Path(options.model) / 'config.json').is_file():
    print(
      f'quickstart-llm: {options.model} is no model directory; make real-model'
      ' brings models/smollm2',
      file=sys.stderr,
    )
    return 78
  width = min(88, shutil.get_terminal_size((88, 24)).columns)
  console = rich_console.Console(width=width, record=True)
  runtime.prepare()
  try:
    run_all(options.model, options.workdir, console)
  except Stop as stop:
    return stop.args[0]
  except errors.SatjaxError as error:
    print(f'quickstart-llm: {error}', file=sys.stderr)
    return error.exit_code
  except KeyboardInterrupt:
    print('quickstart-llm: stopped; run it again to go on', file=sys.stderr)
    return 75
  text = f'```\n{console.export_text()}```\n'
  (options.workdir / 'quickstart.md').write_text(text, encoding='utf-8')
  return 0


if __name__ == '__main__':
  sys.exit(main())
