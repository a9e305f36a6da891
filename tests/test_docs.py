"""Every command of the pages in docs/ runs, in order, at toy size."""

import json
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

from satjax import cli
from satjax.data import sources, tokenizers
from satjax.interop import models as interop
from satjax.model import decoder
from tests import models
from tests.data import subword_samples

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / 'docs').glob('*.md'))
QUICK = ('evaluate',)  # pages of the fast suite; the others train
# What makes a run small; the commands stand as they are.
TOY = {
  'train.num_steps': 4,
  'train.batch_size': 8,
  'train.eval_every': 0,
  'train.eval_batches': 1,
  'train.checkpoint_every': 0,
  'data.seq_len': 64,
  'optimizer.warmup_steps': 1,
  'sparsity.channel_multiple': 8,
  'sparsity.rungs': 1,
  'model.dtype': 'float32',
}
SHAPE = {
  'model.embed_dim': 32,
  'model.num_heads': 4,
  'model.num_kv_heads': 4,
  'model.head_dim': 8,
  'model.mlp_dim': 48,
  'model.scan': False,
}
TASK = """\
task: capitals
dataset_path: json
dataset_kwargs:
  data_files: capitals.json
test_split: train
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""


def commands(page):
  """The commands of the blocks of a page that are meant to be run."""
  text = page.read_text()
  for block in re.findall(r'^```bash\n(.*?)^```', text, re.M | re.S):
    joined = re.sub(r'\\\n\s*', '', block)
    yield from (line for line in joined.splitlines() if line.strip())


def toy(words):
  """The same command, with fewer steps on smaller rows."""
  words = [word.replace('_growth:40', '_growth:2') for word in words]
  if words[1] not in ('train', 'plan', 'preview') or '--params' in words[2]:
    return words
  settings = dict(TOY)
  if not any('init_from' in word for word in words):
    settings |= SHAPE
  if any('growth.py:stack' in word for word in words):
    settings['growth.hops'] = ((2 * 8 * 64, 'stack', 2),)
  return words + [f'--config.{key}={value}' for key, value in settings.items()]


def write_inputs(root):
  """What the pages take for granted: a model, texts, chats and a task."""
  specs = subword_samples.write(root)
  tokenizer = tokenizers.get_tokenizer(specs['llama'])
  model = models.make(
    embed_dim=32, head_dim=8, mlp_dim=48, vocab_size=1024, scan=False
  )
  params = decoder.init_params(model, jax.random.key(0))
  interop.save(
    interop.Model(model, params), root / 'models/llama', tokenizer=tokenizer
  )
  for name in ('books', 'notes', 'chats', 'tasks'):
    (root / name).mkdir()
  texts = [d.text for d in sources.documents('stdlib:docs')][:60]
  for number, text in enumerate(texts):
    (root / 'books' / f'{number:02}.txt').write_text(text[:3000])
  chats = [
    [
      {'role': 'user', 'content': f'Say {word}.'},
      {'role': 'assistant', 'content': word},
    ]
    for word in texts[0].split()[:120]
  ]
  write_lines(root / 'chats/a.jsonl', ({'messages': chat} for chat in chats))
  write_lines(root / 'notes/a.jsonl', ({'text': text[:200]} for text in texts))
  capitals = [
    {'country': 'Norway', 'choices': ['Oslo', 'Rome'], 'answer': 0},
    {'country': 'Italy', 'choices': ['Oslo', 'Rome'], 'answer': 1},
  ]
  (root / 'tasks/capitals.json').write_text(json.dumps(capitals))
  (root / 'tasks/capitals.yaml').write_text(TASK)
  for name in ('configs', 'experiments'):
    (root / name).symlink_to(ROOT / name)


def write_lines(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))


@pytest.mark.parametrize(
  'page',
  [
    pytest.param(
      page,
      id=page.stem,
      marks=() if page.stem in QUICK else pytest.mark.slow,
    )
    for page in PAGES
    if page.stem not in ('results', 'read_the_code')  # nothing to type
  ],
)
def test_commands_of_a_page(page, tmp_path, monkeypatch, capsys):
  write_inputs(tmp_path)
  monkeypatch.chdir(tmp_path)
  found = list(commands(page))
  assert found
  for command in found:
    command, _, piped = command.partition(' | ')
    words = shlex.split(command)
    assert words[0] == 'satjax', command
    capsys.readouterr()
    assert cli.main(toy(words)[1:]) == 0, command
    shown = capsys.readouterr().out
    if words[1] == 'evaluate':
      result = json.loads(shown.splitlines()[-1])
      assert np.isfinite(losses(result)).all()
    else:
      assert shown or words[1] == 'train'
    assert piped in ('', 'tail -n 1 > loss.json')
  for path in re.findall(r'--(?:out|workdir)=(\S+)', ' '.join(found)):
    assert (tmp_path / path).exists(), path


def losses(result):
  values = [one['loss'] for one in result.get('eval', {}).values()]
  values += [
    value
    for task in result.get('tasks', {}).values()
    for name, value in task.items()
    if name.startswith('acc,') or name == 'acc'
  ]
  assert values
  return values


def test_pages_are_linked_from_the_readme():
  readme = (ROOT / 'README.md').read_text()
  for page in PAGES:
    assert f'(docs/{page.name})' in readme
