"""Checkpoints: one Orbax commit holds everything, and a restore checks it.

Orbax gives asynchronous, atomic saves. What is added here is a fingerprint of
the content: Orbax restores a file with a flipped bit without a word, so the
fingerprint is computed from the device arrays when they are saved, and again
when they are restored.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import hashlib
import json
import pathlib
from typing import Any, NamedTuple, Self

from absl import logging
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from satjax import distributed, errors, tree
from satjax.train import orbax_errors
from satjax.tree import PyTree


class Restored(NamedTuple):
  """A checkpoint: completed steps, the tree of arrays, the JSON record."""

  step: int
  state: PyTree
  record: dict[str, Any]


# Folders of a workdir. The later one is further on, at the same step.
KINDS = ('checkpoints', 'before_growth', 'after_growth')
DECAYED = 'decayed'  # what no run goes on from any more (`resume`)


def steps_on_disk(workdir: pathlib.Path) -> list[int]:
  """Steps that have a checkpoint of some kind."""
  found = (path for kind in KINDS for path in (workdir / kind).glob('*'))
  return [int(path.name) for path in found if path.name.isdecimal()]


class Checkpoints:
  """The checkpoints of a workdir: regular ones, and those around growth.

  Of `checkpoints/` the newest and the best are kept, of the others all.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    keep: int | None = None,
    always: Sequence[int] = (),
    keep_best: int = 0,
  ):
    """Opens the folders, for writing if `keep` says how many to keep.

    Args:
      workdir: of the run.
      keep: the newest ones.
      always: steps whose checkpoints are kept besides.
      keep_best: so many of the lowest held-out loss are kept besides.
    """
    self._root = workdir.resolve()
    self._keep, self._always = keep, always
    self._best = _Best(keep_best)
    self._managers: dict[str, ocp.CheckpointManager] = {}
    if keep is not None:
      logging.get_absl_logger().addFilter(orbax_errors.is_not_of_orbax)
    for kind in (*KINDS, DECAYED):
      if kind == KINDS[0] or (self._root / kind).is_dir():
        self._open(kind)
    if keep_best:
      self._best.losses.update(self._held_out())

  def _open(self, kind: str) -> None:
    writes = self._keep is not None
    keep = self._keep if kind == KINDS[0] else None  # None: all
    newest, always = policies.LatestN(keep), policies.CustomSteps(self._always)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(
        [newest, always, self._best]
      ),
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

  def best(self) -> int | None:
    """The step of the lowest held-out loss; None: no loss is known."""
    losses = self._held_out()
    return min(losses, key=losses.get, default=None)

  def _held_out(self) -> dict[int, float]:
    """Held-out losses of the regular checkpoints that have one, by step."""
    found = {s: self.record(s).get('held_out_loss') for s in self.steps()}
    return {step: loss for step, loss in found.items() if loss is not None}

  def save(
    self,
    step: int,
    state: PyTree,
    record: dict[str, Any],
    kind: str = KINDS[0],
  ) -> None:
    """Begins to save; returns when the device arrays may be reused.

    One around growth that is there already is the same, and stays. The record
    may have a 'held_out_loss' to compare by, or None.

    Raises:
      StorageError: this one, or the one before it, cannot be written.
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
    if kind == KINDS[0]:
      self._best.losses[step] = record.get('held_out_loss')
    with self._writing():
      self._managers[kind].save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
        ),
      )

  def wait(self) -> None:
    """Blocks until every save is committed; raises as `save`."""
    with self._writing():
      for manager in self._managers.values():
        manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and ends; raises as `save`."""
    with self._writing():
      for manager in self._managers.values():
        manager.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
    """Closes; not if a process has gone: a save under way would wait for it."""
    if not isinstance(error, errors.PeerLost):
      ignored = (errors.StorageError,) if error else ()
      with contextlib.suppress(*ignored):  # What came first is raised.
        self.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Explains what keeps a checkpoint from being written."""
    try:
      yield
    except (OSError, ValueError) as error:
      reason = orbax_errors.storage_problem(error)
      if not reason:
        raise
      raise errors.StorageError(
        f'cannot save a checkpoint in {self._root}: {reason}; those before it'
        ' are whole: make room, or mend what is wrong, and run the same command'
        ' again'
      ) from error

  def furthest_first(self) -> list[tuple[int, str]]:
    """Step and kind of all that a run may go on from."""
    there = [(s, KINDS.index(k), k) for k in KINDS for s in self.steps(k)]
    return [(s, k) for s, _, k in sorted(there, reverse=True)]

  def record(self, step: int, kind: str = KINDS[0]) -> dict[str, Any]:
    """The JSON record of a checkpoint; empty if it is damaged."""
    try:
      return self._read_record(step, kind)
    except _DamagedError:
      return {}

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
    asked = [(step, kind)] if step is not None else self.furthest_first()
    problems = []
    for number, folder in asked:
      found, reason = None, 'another process could not read it'
      try:
        found = self._read(number, folder, abstract)
      except _DamagedError as error:
        reason = str(error).splitlines()[0]
      if distributed.agree(found is not None):
        return found
      problems.append(f'{folder} step {number}: {reason}')
      self._mark_bad(number, folder)
    if not asked:
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

  def _read_record(self, step: int, kind: str) -> dict[str, Any]:
    record = self._read_part(step, kind, record=ocp.args.JsonRestore())
    if not isinstance(record, dict) or record.get('digest') != _digest(record):
      raise _DamagedError('its JSON record has changed since it was saved')
    if record['step'] != step:
      raise _DamagedError(f'by its record, it is of step {record["step"]}')
    return record

  def _read(self, step, kind, abstract) -> Restored:
    record = self._read_record(step, kind)
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
      if not orbax_errors.proves_damage(error):
        error.add_note(
          f'while reading {self._root / kind / str(step)}, which stays as it is'
        )
        raise
      raise _DamagedError(str(error) or repr(error)) from error
    (name,) = part
    return found[name]

  def _mark_bad(self, step: int, kind: str) -> None:
    """Renames a checkpoint that cannot be used, for a person to look at."""
    if self._keep is None:
      return
    taken = sum(1 for _ in (self._root / kind).glob(f'{step}.bad*'))
    bad = f'{step}.bad{taken or ""}'
    if distributed.is_first():
      logging.error('checkpoint %s/%d is damaged; kept as %s', kind, step, bad)
    self._move(step, kind, self._root / kind / bad)

  def set_aside(self, step: int, kind: str, folder: str) -> None:
    """Moves a checkpoint to a folder from which no run goes on.

    One around growth, whose step may be there already, stays, renamed.
    """
    target = self._root / folder / str(step)
    if kind != KINDS[0]:
      target = self._root / kind / f'{step}.{folder}'
    self._move(step, kind, target)

  def _move(self, step: int, kind: str, target: pathlib.Path) -> None:
    distributed.agree(True)  # All have seen what is there.
    if distributed.is_first():
      target.parent.mkdir(exist_ok=True)
      (self._root / kind / str(step)).rename(target)
    self._managers[kind].close()
    distributed.agree(True)  # The folder has its new name for all.
    self._open(kind)


class _Best(policies.PreservationPolicy):
  """Keeps so many checkpoints, of the lowest losses that are known.

  Orbax's BestN has the losses in files of their own, without a fingerprint,
  and its manager does not open where one of these is damaged.
  """

  def __init__(self, count: int):
    self._count, self.losses = count, {}

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    steps = [one.step for one in checkpoints]
    known = [step for step in steps if self.losses.get(step) is not None]
    best = sorted(known, key=self.losses.get)[: self._count]
    return [step in best for step in steps]


class _DamagedError(Exception):
  """The files of a checkpoint are not what was saved."""


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
