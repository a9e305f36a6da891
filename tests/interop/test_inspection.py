"""`satjax inspect`: what is whole is described, what is damaged is named."""

import hashlib
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

from satjax import errors, tree
from satjax.commands import inspect as command
from satjax.data import tokenizers
from satjax.interop import grow, huggingface, inspection
from tests import models

CONFIG = models.make(vocab_size=272, sliding_window=8)
WEIGHTS = 'model-00001-of-00002.safetensors'


def save(directory, config=CONFIG, **options):
  draw = np.random.default_rng(0).normal
  params = {
    path: draw(size=shape).astype(np.float32)
    for path, shape in tree.shapes(config).items()
  }
  huggingface.save(
    directory,
    config,
    tree.unflatten(params),
    tokenizer=tokenizers.ByteTokenizer(),
    max_shard_bytes=12_000,
    **options,
  )


@pytest.fixture
def saved(tmp_path):
  directory = tmp_path / 'model'
  save(directory)
  return directory


def look(directory):
  """The tables of `inspect` by their first column, and the problems."""
  text, problems = inspection.inspect(directory)
  tables = dict.fromkeys(('', 'file', 'tensor'), {})
  for block in text.split('\n\n')[:-1]:
    heads, _, *rows = (line[2:-2].split(' | ') for line in block.splitlines())
    tables[heads[0]] = {name: cells for name, *cells in rows}
  facts = {name: fact for name, (fact,) in tables[''].items()}
  return types.SimpleNamespace(
    facts=facts,
    files=tables['file'],
    tensors=tables['tensor'],
    problems=problems,
  )


def verdicts(found):
  return {name: cells[-1] for name, cells in found.files.items()}


def damage(path, at=-1):
  content = bytearray(path.read_bytes())
  content[at] ^= 1
  path.write_bytes(content)


def without_checksums(directory):
  (directory / 'checksums.json').unlink()


def rewrite(directory, change):
  tensors = safetensors.numpy.load_file(directory / WEIGHTS)
  change(tensors)
  safetensors.numpy.save_file(tensors, directory / WEIGHTS)


def run(directory):
  command.run(types.SimpleNamespace(model=str(directory)))


def test_a_whole_directory_is_described_without_a_device(saved):
  program = (
    'from satjax.commands import inspect; import types;'
    'inspect.run(types.SimpleNamespace(model="model"))'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=saved.parent,
    env=os.environ | {'JAX_PLATFORMS': 'nowhere'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  lines = [line.strip('| ') for line in done.stdout.splitlines()]
  lines = [' '.join(line.split(' | ')) for line in lines]
  for expected in (
    'family mistral',
    'dtype F32 21 tensors',
    'parameters 5,448, without embeddings 1,096',
    'layers 2',
    'width 8, mlp 6',
    'heads 4, of keys and values 2, head_dim 4',
    'vocabulary 272, output not tied to the embedding',
    'context 2048',
    'rope base 100, not scaled',
    'window 8 tokens',
    'tokenizer byte, 258 tokens fit',
    'special begin 256 <|begin_of_text|>, end 257 <|end_of_text|>',
    'model.embed_tokens.weight 272 x 8 F32 1',
    'model.layers.*.mlp.down_proj.weight 8 x 6 F32 2',
    'whole: every file of checksums.json is as it was written',
  ):
    assert expected in lines
  size = (saved / WEIGHTS).stat().st_size
  digest = hashlib.sha256((saved / WEIGHTS).read_bytes()).hexdigest()
  assert f'{WEIGHTS} {size:,} {digest} as written' in lines


def test_every_file_that_is_written_has_a_checksum(saved, tmp_path):
  grow.grow(saved, tmp_path / 'deep', [('stack', 2)])
  for directory in (saved, tmp_path / 'deep'):
    found = look(directory)
    assert not found.problems
    assert verdicts(found).pop('checksums.json') == ''
    others = {n for n in verdicts(found) if n != 'checksums.json'}
    assert {verdicts(found)[name] for name in others} == {'as written'}
    listed = json.loads((directory / 'checksums.json').read_text())
    assert listed['algorithm'] == 'sha256'
    assert listed['files'].keys() == others


@pytest.mark.parametrize(
  'name', [WEIGHTS, 'config.json', 'tokenizer.json', 'generation_config.json']
)
def test_a_flipped_bit_is_found_in_its_file(saved, name):
  damage(saved / name)
  found = look(saved)
  assert [n for n, v in verdicts(found).items() if v == 'differs'] == [name]
  assert found.problems[0].startswith(f'{name}: found sha256 ')


def test_the_command_fails_after_it_printed(saved, capsys):
  damage(saved / WEIGHTS)
  with pytest.raises(errors.DataError, match=f'{WEIGHTS}: found sha256'):
    run(saved)
  printed = capsys.readouterr().out
  assert 'family' in printed
  assert '1 problem' in printed


def test_a_missing_file_and_one_that_leads_out_are_found(saved, tmp_path):
  (saved / 'tokenizer_config.json').unlink()
  (saved / 'generation_config.json').rename(tmp_path / 'outside')
  (saved / 'generation_config.json').symlink_to(tmp_path / 'outside')
  found = look(saved)
  assert len(found.problems) == 2
  assert 'generation_config.json is a link that leaves' in found.problems[0]
  assert found.problems[1] == (
    'tokenizer_config.json is missing; checksums.json lists it'
  )


@pytest.mark.parametrize('has_checksums', [True, False])
@pytest.mark.parametrize('size', [100, -1])
def test_a_truncated_file_is_found_with_and_without(saved, has_checksums, size):
  content = (saved / WEIGHTS).read_bytes()
  (saved / WEIGHTS).write_bytes(content[:size])
  if not has_checksums:
    without_checksums(saved)
  found = look(saved)
  assert len(found.problems) == 1 + has_checksums
  assert f'{WEIGHTS} is not a whole safetensors file' in found.problems[-1]
  # What can be read is described all the same.
  assert found.facts['family'] == 'mistral'
  assert found.tensors


def test_a_file_that_is_too_long_is_found(saved):
  without_checksums(saved)
  with (saved / WEIGHTS).open('ab') as file:
    file.write(b'\0')
  (problem,) = look(saved).problems
  assert f'{WEIGHTS} is not a whole safetensors file' in problem


def test_missing_and_misshaped_tensors_are_found(saved):
  without_checksums(saved)
  name = 'model.layers.0.self_attn.q_proj.weight'
  embed = 'model.embed_tokens.weight'

  def change(tensors):
    del tensors[name]
    tensors[embed] = tensors[embed][1:].copy()

  rewrite(saved, change)
  found = look(saved)
  assert f'{name}: found nowhere, expected in {WEIGHTS}' in found.problems
  assert f'{embed}: found F32 [271, 8], expected F32 [272, 8]' in found.problems
  assert len(found.problems) == 2
  for name, count in (('q', '1'), ('k', '2')):
    full = f'model.layers.*.self_attn.{name}_proj.weight'
    assert found.tensors[full][-1] == count


def test_without_checksums_there_are_those_of_all_files(saved, capsys):
  without_checksums(saved)
  (saved / 'notes [bold]\x1b.txt').write_bytes(b'')
  run(saved)
  printed = capsys.readouterr().out
  assert 'there is no checksums.json' in printed
  assert hashlib.sha256(b'').hexdigest() in printed
  assert "'notes [bold]\\x1b.txt'" in printed
  for path in saved.iterdir():
    assert hashlib.sha256(path.read_bytes()).hexdigest() in printed


def test_a_tokenizer_that_is_too_large_is_found(tmp_path):
  save(tmp_path, models.make(vocab_size=257))
  found = look(tmp_path)
  assert found.facts['tokenizer'].startswith('byte, 258 tokens do not fit')
  assert found.problems == [
    'tokenizer.json: found a vocabulary of 258, expected at most 257, the'
    ' vocab_size of config.json; use the tokenizer of this model, or add rows'
    ' (satjax grow --vocab_multiple=64)'
  ]


def test_a_directory_may_have_no_tokenizer_or_a_broken_one(saved):
  without_checksums(saved)
  (saved / 'tokenizer.json').write_text('{')
  (problem,) = look(saved).problems
  assert 'tokenizer.json is no' in problem
  (saved / 'tokenizer.json').unlink()
  found = look(saved)
  assert not found.problems
  assert found.facts['tokenizer'].startswith('none')


@pytest.mark.parametrize(
  'content, problem',
  [
    ('{', 'not valid JSON'),
    ('{"algorithm": "md5", "files": {}}', "algorithm = 'md5'; supported: 'sha"),
    ('{"algorithm": "sha256"}', 'has no files'),
    (
      '{"algorithm": "sha256", "files": {"../outside": "", "\\u0000": 7}}',
      'checksums.json lists it',
    ),
  ],
)
def test_checksums_that_are_damaged_are_found(saved, content, problem):
  (saved.parent / 'outside').write_text('')
  (saved / 'checksums.json').write_text(content)
  found = look(saved)
  assert found.problems
  for text in found.problems:
    assert problem in text


def test_a_directory_that_can_not_be_used_is_searched_all_the_same(saved):
  without_checksums(saved)
  (saved / 'config.json').write_text('{"model_type": "gpt2"}')
  (saved / WEIGHTS).unlink()
  found = look(saved)
  assert not found.facts
  problems = '\n'.join(found.problems)
  assert "model_type = 'gpt2'; supported: llama, mistral" in problems
  assert f'{WEIGHTS} is missing' in problems
  with pytest.raises(errors.DataError, match='is no directory'):
    look(saved / 'nowhere')


def test_loading_takes_no_checksums(saved):
  damage(saved / 'generation_config.json')
  assert huggingface.load(saved)[0] == CONFIG
