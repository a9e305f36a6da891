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

from satjax import errors, tree
from satjax.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint: completed steps, the tree of arrays, the JSON record."""

  step: int
  state: PyTree
  record: dict[str, Any]


class Checkpoints:
  """The `checkpoints/` folder of a workdir."""

  def __init__(self, directory: pathlib.Path, keep: int | None = None):
    """Opens a folder, for writing if `keep` says how many to keep."""
    self._directory = directory.resolve()
    self._writes = keep is not None
    self._options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      create=self._writes,
      cleanup_tmp_directories=self._writes,
      enable_async_checkpointing=self._writes,
    )
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._directory,
      item_names=('state', 'record'),
      options=self._options,
    )

  @property
  def steps(self) -> list[int]:
    """Steps that have a committed checkpoint, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: PyTree, record: dict[str, Any]) -> None:
    """Begins to save; returns when the device arrays may be reused."""
    record = {**record, 'step': step, 'fingerprint': fingerprint(state)}
    record['digest'] = _digest(record)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
      ),
    )

  def wait(self) -> None:
    """Blocks until every save is committed."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()

  def restore(
    self,
    abstract: Callable[[dict[str, Any]], PyTree],
    step: int | None = None,
  ) -> Restored | None:
    """The newest checkpoint that is whole, or the one of `step`.

    Args:
      abstract: from the JSON record to the tree of ShapeDtypeStructs (with
        shardings) to restore.
      step: a completed step; None: the newest.

    Returns:
      None if there is no checkpoint at all.

    Raises:
      DataError: there are checkpoints and none can be used, or there is none
        of that step. A run never silently starts again from 0.
    """
    if step is not None and step not in self.steps:
      raise errors.DataError(
        f'no checkpoint of step {step} in {self._directory}; there are'
        f' {self.steps or "none"}'
      )
    candidates = [step] if step is not None else self.steps[::-1]
    problems = []
    for candidate in candidates:
      try:
        record = self._read_record(candidate)
        return self._read_state(candidate, record, abstract(record))
      except Exception as error:  # Orbax raises bare ones for damaged files.
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        problems.append(f'step {candidate}: {reason}')
        self._set_aside(candidate)
    if problems:
      raise errors.DataError(
        f'no checkpoint in {self._directory} can be used; they are kept as'
        ' STEP.bad:\n'
        + '\n'.join(problems)
        + '\nCopy a good checkpoint there, or choose another workdir to start'
        ' from step 0.'
      )
    return None

  def _read_record(self, step: int) -> dict[str, Any]:
    record = self._manager.restore(
      step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
    )['record']
    if record.get('digest') != _digest(record):
      raise errors.DataError('its JSON record has changed since it was saved')
    return record

  def _read_state(self, step, record, abstract) -> Restored:
    state = self._manager.restore(
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

  def _set_aside(self, step: int) -> None:
    """Renames a checkpoint that can not be used, for a person to look at."""
    if not self._writes:
      return
    taken = sum(1 for _ in self._directory.glob(f'{step}.bad*'))
    bad = self._directory / f'{step}.bad{taken or ""}'
    logging.error('checkpoint of step %d is damaged; kept as %s', step, bad)
    (self._directory / str(step)).rename(bad)
    self._manager.close()
    self._manager = self._open()


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


def abstract_like(
  state: PyTree, sharding: Callable[[str, tuple[int, ...]], Any]
) -> PyTree:
  """ShapeDtypeStructs of a tree, with `sharding(path, shape)` on each leaf."""
  return tree.map_with_path(
    lambda path, leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding(path, leaf.shape)
    ),
    state,
  )
