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

    Args:
      abstract: from the JSON record to the tree of ShapeDtypeStructs (with
        shardings) to restore.
      step: a completed step; None: the newest of any kind.
      kind: the folder of `step`.

    Returns:
      None if there is no checkpoint at all.

    Raises:
      DataError: there are checkpoints and none can be used, or there is none
        of that step. A run never silently starts again from 0.
    """
    if step is not None and step not in self.steps(kind):
      raise errors.DataError(
        f'no checkpoint of step {step} in {self._root / kind}; there are'
        f' {self.steps(kind) or "none"}'
      )
    found = [(s, KINDS.index(k), k) for k in KINDS for s in self.steps(k)]
    candidates = [(s, k) for s, _, k in sorted(found, reverse=True)]
    if step is not None:
      candidates = [(step, kind)]
    problems = []
    for number, folder in candidates:
      found, reason = None, 'another process could not read it'
      try:
        record = self._read_record(number, folder)
        found = self._read_state(number, folder, record, abstract(record))
      except Exception as error:  # Orbax raises bare ones for damaged files.
        reason = str(error).splitlines()[0] if str(error) else repr(error)
      if distributed.agree(found is not None):
        return found
      problems.append(f'{folder} step {number}: {reason}')
      self._set_aside(number, folder)
    if problems:
      raise errors.DataError(
        f'no checkpoint in {self._root} can be used; they are kept as'
        ' STEP.bad:\n'
        + '\n'.join(problems)
        + '\nCopy a good checkpoint there, or choose another workdir to start'
        ' from step 0.'
      )
    return None

  def _read_record(self, step: int, kind: str) -> dict[str, Any]:
    record = self._managers[kind].restore(
      step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
    )['record']
    if record.get('digest') != _digest(record):
      raise errors.DataError('its JSON record has changed since it was saved')
    return record

  def _read_state(self, step, kind, record, abstract) -> Restored:
    state = self._managers[kind].restore(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)),
    )['state']
    saved, found = record['fingerprint'], fingerprint(state)
    wrong = [path for path in saved if found.get(path) != saved[path]]
    if wrong:
      raise errors.DataError(
        f'content differs from what was saved, in {", ".join(wrong[:3])}'
      )
    return Restored(step, state, record)

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
  return {
    path: int(value)
    for path, value in jax.device_get(_hash_leaves(tree.flatten(state))).items()
  }


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
