"""Every command of the pages in docs/ runs, in order, at toy size.

Those of pages on a real model run as they are in `test_real_pages.py`; here,
options, configurations and overrides are checked.
"""

import json
import pathlib
import re
import shlex

import jax
import pytest

from satjax import cli
from satjax.config import file
from satjax.data import sources, tokenizers
from satjax.interop import models as interop
from satjax.model import decoder
from tests import models
from tests.data import subword_samples

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / 'docs').glob('*.md'))
# Pages on the real model, which begin with SETUP.
REAL = (
  'continue_a_llama',
  'evaluate',
  'fine_tune_on_my_chats',
  'grow_a_model',
)
SETUP = 'make real-model\nsource .venv/bin/activate\n'
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


def blocks(page):
  """The blocks of a page that are meant to be run."""
  return re.findall(r'^```bash\n(.*?)^```', page.read_text(), re.M | re.S)


def commands(page):
  """The words of every command of satjax on a page, up to a pipe."""
  for block in blocks(page):
    for line in re.sub(r'\\\n\s*', '', block).splitlines():
      if line.startswith('satjax '):
        yield shlex.split(line.partition(' | ')[0])


def toy(words):
  """The same command, with fewer steps on smaller rows."""
  if words[1] not in ('train', 'plan', 'preview') or '--params' in words[2]:
    return words
  settings = dict(TOY)
  if not any('smollm2' in word for word in words):
    settings |= SHAPE
  return words + [f'--config.{key}={value}' for key, value in settings.items()]


def write_inputs(root):
  """What the pages take for granted: a model and texts."""
  specs = subword_samples.write(root)
  tokenizer = tokenizers.get_tokenizer(specs['llama'])
  model = models.make(
    embed_dim=32, head_dim=8, mlp_dim=48, vocab_size=1024, scan=False
  )
  params = decoder.init_params(model, jax.random.key(0))
  interop.save(
    interop.Model(model, params), root / 'models/smollm2', tokenizer=tokenizer
  )
  for name in ('books', 'notes'):
    (root / name).mkdir()
  texts = [d.text for d in sources.documents('stdlib:docs')][:60]
  for number, text in enumerate(texts):
    (root / 'books' / f'{number:02}.txt').write_text(text[:3000])
  write_lines(root / 'notes/a.jsonl', ({'text': text[:200]} for text in texts))
  for name in ('configs', 'experiments'):
    (root / name).symlink_to(ROOT / name)


def write_lines(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))


@pytest.mark.slow
@pytest.mark.parametrize(
  'page',
  [
    pytest.param(page, id=page.stem)
    for page in PAGES
    if page.stem not in ('results', 'read_the_code', *REAL)
  ],
)
def test_commands_of_a_page(page, tmp_path, monkeypatch, capsys):
  write_inputs(tmp_path)
  monkeypatch.chdir(tmp_path)
  found = list(commands(page))
  assert found
  for words in found:
    capsys.readouterr()
    assert cli.main(toy(words)[1:]) == 0, words
    assert capsys.readouterr().out or words[1] == 'train'
  for word in sum(found, []):
    option, _, path = word.partition('=')
    if option in ('--out', '--workdir'):
      assert (tmp_path / path).exists(), path


@pytest.mark.parametrize('name', REAL)
def test_commands_for_a_real_model_are_spelled_right(name, monkeypatch):
  monkeypatch.chdir(ROOT)
  page = ROOT / f'docs/{name}.md'
  assert blocks(page)[0] == SETUP
  found = list(commands(page))
  assert found
  for words in found:
    overrides = [word for word in words if word.startswith('--config.')]
    plain = [word for word in words[1:] if word not in overrides]
    options = cli._parser().parse_args(plain)
    if path := getattr(options, 'config', None):
      file.load(path, overrides)
    else:
      assert not overrides


def test_pages_are_linked_from_the_readme():
  readme = (ROOT / 'README.md').read_text()
  for page in PAGES:
    assert f'(docs/{page.name})' in readme
