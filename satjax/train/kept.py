"""What a run keeps of its surroundings, so that it outlives them.

Its workdir holds the tokenizer (`tokenizer/`), the settings of the model that
it started from (`base/`), and the folder that relative paths are seen from
(`paths.json`). The weights that it started from are read once, at the start.
"""

from collections.abc import Callable, Mapping
import dataclasses
import glob
import json
import os
import pathlib
import shutil
from typing import Any

from absl import logging

from satjax import files, hub
from satjax.config import defaults
from satjax.config.run import Config
from satjax.data.tokenizers import Tokenizer
from satjax.interop import llama, models, small_files

TOKENIZER, BASE, PATHS = 'tokenizer', 'base', 'paths.json'
# Kinds of sources: those that name files by a glob, and folders.
_GLOBS, _FOLDERS = ('text', 'jsonl', 'parquet'), ('tokens', 'tfds')


def contents(tokenizer: Tokenizer, base: str) -> dict[str, bytes]:
  """The files to keep, by their names in the workdir.

  `base`: the model directory that a new run starts from, or empty.
  """
  kept = {f'{TOKENIZER}/{name}': x for name, x in tokenizer.files().items()}
  settings = small_files.files_of(hub.local(base)) if base else {}
  return kept | {f'{BASE}/{name}': x for name, x in settings.items()}


def write(
  workdir: pathlib.Path,
  kept: Mapping[str, bytes],
  config: Config,
  is_new: bool,
) -> None:
  """Writes `contents`: all for a run that is new, else what is missing.

  Raises:
    OSError: a file cannot be written.
  """
  for folder in (workdir / TOKENIZER, workdir / BASE):
    if is_new:
      shutil.rmtree(folder, ignore_errors=True)
    of_folder = [n for n in kept if n.startswith(f'{folder.name}/')]
    if of_folder and not folder.is_dir():
      folder.mkdir()
      for name in of_folder:
        files.write(workdir / name, kept[name])
  is_here = []
  _with_paths(config, lambda path, _: is_here.append(_exists(path)) or path)
  if is_new or all(is_here):
    files.write_json(workdir / PATHS, {'folder': os.getcwd()})


def resumed(
  workdir: str | os.PathLike, old: Config, config: Config
) -> tuple[Config, Config]:
  """What a run that has begun is now, and how to read what it needs.

  Its architecture is its own: the model that it started from need not be there.
  So is its warm-up, which may be a share of the steps. Paths are as they were
  given in the first configuration; in the second they lead there from the
  folder that this process runs in.

  Args:
    old: what the workdir says of the run.
    config: what it is asked to be.
  """
  base, asked = old.model.init_from, config.model.init_from
  if base and asked:
    own = {name: getattr(config.model, name) for name in llama.TRAINING}
    model = dataclasses.replace(old.model, **own)
    values = defaults.as_begun(config.to_dict(), old)
    config = Config.from_dict(values | {'model': dataclasses.asdict(model)})
  else:
    config = models.resolve(config)
  if base and asked and base != asked:
    logging.warning(
      f'config.model.init_from {asked!r} is not read: the run has begun, from'
      f' {base!r}'
    )
  warmup = old.optimizer.warmup_steps
  is_longer = config.train.num_steps > old.train.num_steps
  if is_longer and config.optimizer.warmup_steps != warmup:
    logging.warning(f'the run keeps its optimizer.warmup_steps {warmup}')
    optimizer = dataclasses.replace(config.optimizer, warmup_steps=warmup)
    config = dataclasses.replace(config, optimizer=optimizer)
  located = _located(workdir, config, own_first=False)
  spec = located.data.tokenizer
  copy = kept_tokenizer(workdir, spec)
  if copy and not _exists(spec.partition(':')[2]):
    if spec != old.data.tokenizer:
      logging.warning(f'{spec!r} is not there; {copy!r} of the run is used')
    located = _with_tokenizer(located, copy)
  return config, located


def opened(
  workdir: str | os.PathLike, config: Config, tokenizer: str = ''
) -> Config:
  """The configuration of a run, to look at its model from any folder.

  `tokenizer`: instead of the one that the run has kept.
  """
  located = _located(workdir, config, own_first=True)
  spec = tokenizer or kept_tokenizer(workdir, config.data.tokenizer)
  return _with_tokenizer(located, spec) if spec else located


def kept_tokenizer(workdir: str | os.PathLike, spec: str) -> str | None:
  """The copy in a workdir of a tokenizer of files; None: there is none."""
  kind, folder = spec.partition(':')[0], pathlib.Path(workdir) / TOKENIZER
  if kind == 'sentencepiece' and (folder / 'tokenizer.model').is_file():
    return f'sentencepiece:{folder / "tokenizer.model"}'
  if kind == 'hf' and (folder / 'tokenizer.json').is_file():
    return f'hf:{folder}'
  return None


def is_moved(key: str, before: Any, after: Any) -> bool:
  """Whether two values of `group.key` may differ by where things are alone.

  That the text and the tokenizer are the same, their fingerprints say.
  """
  if key == 'model.init_from':
    return bool(before and after)
  if key == 'data.tokenizer':
    kind = before.partition(':')[0]
    return kind == after.partition(':')[0] and kind != 'byte'
  if key != 'data.train':
    return False
  old, new = (
    [_map_source(source, lambda path, _: '') for source in sources]
    for sources in (before, after)
  )
  return old == new


def _with_tokenizer(config: Config, spec: str) -> Config:
  data = dataclasses.replace(config.data, tokenizer=spec)
  return dataclasses.replace(config, data=data)


def _located(
  workdir: str | os.PathLike, config: Config, own_first: bool
) -> Config:
  """Paths as they lead there from here: seen from here, or from `paths.json`.

  `own_first`: the run's own folder goes before this one.
  """
  path = pathlib.Path(workdir) / PATHS
  here = os.getcwd()
  own = json.loads(path.read_text())['folder'] if path.is_file() else here

  def find(path: str, is_glob: bool) -> str:
    for folder in (own, here) if own_first else (here, own):
      root = glob.escape(folder) if is_glob else folder
      there = os.path.join(root, os.path.expanduser(path))
      if _exists(there):
        return path if folder == here else there
    return path

  return _with_paths(config, find)


def _exists(path: str) -> bool:
  path = os.path.expanduser(path)
  return os.path.exists(path) or any(glob.iglob(path, recursive=True))


def _with_paths(config: Config, change: Callable[[str, bool], str]) -> Config:
  """Applies `change` of (path, whether it is a glob) to every path."""
  data, model = config.data, config.model
  kind, colon, path = data.tokenizer.partition(':')
  data = dataclasses.replace(
    data,
    train=tuple(_map_source(source, change) for source in data.train),
    eval=tuple(_map_source(source, change) for source in data.eval),
    tokenizer=f'{kind}:{change(path, False)}' if colon else kind,
  )
  if model.init_from:
    path = change(model.init_from, False)
    model = dataclasses.replace(model, init_from=path)
  return dataclasses.replace(config, data=data, model=model)


def _map_source(source: Any, change: Callable[[str, bool], str]) -> Any:
  if not isinstance(source, str):
    return (_map_source(source[0], change), *source[1:])
  kind, _, path = source.partition(':')
  if kind in _GLOBS:
    return f'{kind}:{change(path, True)}'
  if kind in _FOLDERS:
    path, mark, split = path.partition('?')  # of tfds:
    return f'{kind}:{change(path, False)}{mark}{split}'
  return source
