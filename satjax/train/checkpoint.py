"""Checkpoints: one Orbax commit holds everything, and a restore checks it.

Orbax gives asynchronous, atomic saves. What is added here is a fingerprint of
the content: Orbax restores a file with a flipped bit without a word, so the
fingerprint is computed from the device arrays when they are saved, and again
when they are restored.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from satjax import distributed, errors, tree
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint: completed steps, the tree of arrays, the JSON record."""

  step: int
  state: PyTree
  record: dict[str, Any]


# What TensorStore says of the machine, such as a mount that is gone: another
# time it may work. A file is to blame if it is not there, or by a status that
# comes without an error of the system (DATA_LOSS...).
_MACHINE = re.compile(
  r'ABORTED:|CANCELLED:|DEADLINE_EXCEEDED:|INTERNAL:|PERMISSION_DENIED:'
  r'|RESOURCE_EXHAUSTED:|UNAVAILABLE:|UNKNOWN:'
  r"|os_error_code='(?!(2|20|21)')"  # all but ENOENT, ENOTDIR, EISDIR
)
_NO_FILE = FileNotFoundError | IsADirectoryError | NotADirectoryError
# What the machine and bugs raise, never a file.
_NO_DAMAGE = MemoryError | RuntimeError | TypeError | AttributeError
_NO_DAMAGE |= NameError | ImportError | AssertionError
# Folders of a workdir. The later one is further on, at the same step.
KINDS = ('checkpoints', 'before_growth', 'after_growth')


class Checkpoints:
  """The checkpoints of a workdir: regular ones, and those around growth.

  Of `checkpoints/` the newest are kept, of the others all.
  """

  def __init__(self, workdir: pathlib.Path, keep: int | None = None):
    """Opens the folders, for writing if `keep` says how many to keep."""
    self._root = workdir.resolve()
    self._keep = keep
    self._managers: dict[str, ocp.CheckpointManager] = {}
    for kind in KINDS:
      if kind == KINDS[0] or (self._root / kind).is_dir():
        self._open(kind)

  def _open(self, kind: str) -> None:
    writes = self._keep is not None
    options = ocp.CheckpointManagerOptions(
      max_to_keep=self._keep if kind == KINDS[0] else None,
      create=writes,
      cleanup_tmp_directories=writes,
      enable_async_checkpointing=writes,
    )
    self._managers[kind] = ocp.CheckpointManager(
      self._root / kind, item_names=('state', 'record'), options=options
    )

  def steps(self, kind: str = KINDS[0]) -> list[int]:
    """Steps that have a committed checkpoint, oldest first."""
    manager = self._managers.get(kind)
    return sorted(manager.all_steps()) if manager else []

  def save(
    self,
    step: int,
    state: PyTree,
    record: dict[str, Any],
    kind: str = KINDS[0],
  ) -> None:
    """Begins to save; returns when the device arrays may be reused.

    One around growth that is there already is the same, and stays.
    """
    if kind not in self._managers:
      self._open(kind)
    if kind != KINDS[0] and step in self.steps(kind):
      return
    record = {
      **record,
      'step': step,
      'grown': kind == 'after_growth',
      'fingerprint': fingerprint(state),
      'shapes': _shapes(state),
    }
    record['digest'] = _digest(record)
    self._managers[kind].save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
      ),
    )

  def wait(self) -> None:
    """Blocks until every save is committed."""
    for manager in self._managers.values():
      manager.wait_until_finished()

  def close(self) -> None:
    for manager in self._managers.values():
      manager.close()

  def restore(
    self,
    abstract: Callable[[dict[str, Any]], PyTree],
    step: int | None = None,
    kind: str = KINDS[0],
  ) -> Restored | None:
    """The checkpoint that is furthest on and whole, or the one of `step`.

    `abstract` goes from the JSON record to the tree of ShapeDtypeStructs (with
    shardings) to restore. None if there is no checkpoint at all.

    Raises:
      DataError: there are checkpoints and all are damaged, or there is none of
        that step; or one holds other arrays than asked for. A run never
        silently starts again from 0.
      Exception: whatever else went wrong while reading, such as a lack of
        memory. It says nothing of the checkpoint, which stays as it is.
    """
    if step is not None and step not in self.steps(kind):
      raise errors.DataError(
        f'no checkpoint of step {step} in {self._root / kind}; there are'
        f' {self.steps(kind) or "none"}'
      )
    candidates = [(step, kind)]
    if step is None:
      there = [(s, KINDS.index(k), k) for k in KINDS for s in self.steps(k)]
      candidates = [(s, k) for s, _, k in sorted(there, reverse=True)]
    problems = []
    for number, folder in candidates:
      found, reason = None, 'another process could not read it'
      try:
        found = self._read(number, folder, abstract)
      except _DamagedError as error:
        reason = str(error).splitlines()[0]
      if distributed.agree(found is not None):
        return found
      problems.append(f'{folder} step {number}: {reason}')
      self._set_aside(number, folder)
    if step is None and not candidates:
      # As the command before this one left them.
      problems = [str(p) for k in KINDS for p in self._root.glob(f'{k}/*.bad*')]
    if problems:
      raise errors.DataError(
        f'no checkpoint in {self._root} can be used; they are kept as'
        ' STEP.bad:\n'
        + '\n'.join(problems)
        + '\nCopy a good checkpoint there, or choose another workdir to start'
        ' from step 0.'
      )
    return None

  def _read(self, step, kind, abstract) -> Restored:
    record = self._read_part(step, kind, record=ocp.args.JsonRestore())
    if not isinstance(record, dict) or record.get('digest') != _digest(record):
      raise _DamagedError('its JSON record has changed since it was saved')
    if record['step'] != step:
      raise _DamagedError(f'by its record, it is of step {record["step"]}')
    wanted = abstract(record)
    # What Orbax says against shapes is proof of damage only if they are right.
    _check_shapes(record, wanted, f'{self._root / kind / str(step)}')
    args = ocp.args.StandardRestore(wanted)
    state = self._read_part(step, kind, state=args)
    saved, found = record['fingerprint'], fingerprint(state)
    wrong = [path for path in saved if found.get(path) != saved[path]]
    if wrong:
      raise _DamagedError(
        f'content differs from what was saved, in {", ".join(wrong[:3])}'
      )
    return Restored(step, state, record)

  def _read_part(self, step: int, kind: str, **part: Any) -> Any:
    """One part of a checkpoint; raises _DamagedError if its files are bad."""
    try:
      found = self._managers[kind].restore(
        step, args=ocp.args.Composite(**part)
      )
    except Exception as error:
      if not _proves_damage(error):
        error.add_note(
          f'while reading {self._root / kind / str(step)}, which stays as it is'
        )
        raise
      raise _DamagedError(str(error) or repr(error)) from error
    (name,) = part
    return found[name]

  def _set_aside(self, step: int, kind: str) -> None:
    """Renames a checkpoint that cannot be used, for a person to look at."""
    if self._keep is None:
      return
    if distributed.is_first():
      folder = self._root / kind
      taken = sum(1 for _ in folder.glob(f'{step}.bad*'))
      bad = folder / f'{step}.bad{taken or ""}'
      logging.error('checkpoint %s/%d is damaged; kept as %s', kind, step, bad)
      (folder / str(step)).rename(bad)
    self._managers[kind].close()
    distributed.agree(True)  # The folder has its new name for all.
    self._open(kind)


class _DamagedError(Exception):
  """The files of a checkpoint are not what was saved."""


def _proves_damage(error: BaseException) -> bool:
  """Whether an error of Orbax can only come from what the files hold.

  Not a lack of memory or of open files, nor a bug: a checkpoint is never set
  aside for these.
  """
  causes = [error]
  while cause := causes[-1].__cause__ or causes[-1].__context__:
    causes.append(cause)
  if any(isinstance(e, OSError) for e in causes):
    return all(
      isinstance(e, _NO_FILE) for e in causes if isinstance(e, OSError)
    )
  if any(isinstance(e, _NO_DAMAGE) for e in causes):
    return False
  if any(_MACHINE.search(str(e)) for e in causes):
    return False
  # Orbax raises a bare Exception where TensorStore could not read an array.
  return type(error) is Exception or isinstance(error, ValueError | KeyError)


def _shapes(state: PyTree) -> dict[str, list[Any]]:
  """[shape, dtype] of each leaf, by path, as JSON holds it."""
  return {
    path: [list(leaf.shape), leaf.dtype.name]
    for path, leaf in tree.flatten(state).items()
  }


def _check_shapes(record: dict[str, Any], wanted: PyTree, name: str) -> None:
  """Refuses to read what a checkpoint does not hold.

  Records from before there were shapes in them have the paths alone.
  """
  asked = _shapes(wanted)
  saved = record.get('shapes') or dict.fromkeys(record['fingerprint'])
  for path in sorted(saved.keys() | asked.keys()):
    holds = path in saved and (saved[path] or asked.get(path))
    if holds != asked.get(path):
      raise errors.DataError(
        f'{name} holds {path} {saved.get(path, "not at all")}, and this run'
        f' has {asked.get(path, "no such array")}; it is whole: open it with'
        ' the configuration and the version of satjax that wrote it'
      )


def _digest(record: dict[str, Any]) -> str:
  """Hash of a JSON record, but for the hash that it holds."""
  rest = {name: value for name, value in record.items() if name != 'digest'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def fingerprint(state: PyTree) -> dict[str, int]:
  """A 32-bit content hash of each leaf, by path.

  Words are multiplied by odd, position-dependent weights and summed modulo
  2^32: any change confined to one word is seen, and the sum does not depend on
  how the array is sharded.
  """
  here, found = {}, {}
  for path, leaf in tree.flatten(state).items():
    if leaf.sharding.memory_kind == 'pinned_host':
      # One at a time: the device may have no room for all that is parked.
      where = leaf.sharding.with_memory_kind('device')
      hashed = _hash_leaves({path: jax.device_put(leaf, where)})
      found |= jax.block_until_ready(hashed)
    else:
      here[path] = leaf
  found |= _hash_leaves(here)
  return {path: int(value) for path, value in jax.device_get(found).items()}


@jax.jit
def _hash_leaves(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
  return {path: _hash_leaf(leaf) for path, leaf in leaves.items()}


def _hash_leaf(x: jax.Array) -> jax.Array:
  if x.dtype == bool:
    x = x.astype(jnp.uint8)
  width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
  words = jax.lax.bitcast_convert_type(x, width[x.dtype.itemsize])
  weight = jnp.ones((), jnp.uint32)
  for axis in range(words.ndim):
    # Distinct odd multipliers make the weight depend on every coordinate.
    place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    weight = weight * (2 * place * jnp.uint32(0x9E3779B1 + 2 * axis) + 1)
  return jnp.sum(words.astype(jnp.uint32) * weight, dtype=jnp.uint32)
