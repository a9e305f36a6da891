"""Several processes as one run: how they meet, agree, and part.

Every process runs the same program on the same batches; `jax.distributed` joins
their devices to one mesh. Only the first process writes logs, and checkpoints
are written by all of them together.
"""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
import os
import re
import signal
import socket
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from satjax import errors

_WAIT = 300  # seconds for all processes to come
_PART = 10  # seconds for all processes to leave
# What errors of collectives say when a process at the other end has gone.
_SIGNS = ('Gloo', 'NCCL', 'nccl', 'heartbeat', 'UNAVAILABLE', 'coordination')
# What launchers set: the number of processes, and that of this one, from 0.
_LAUNCHERS = {
  'SLURM_NTASKS': 'SLURM_PROCID',
  'OMPI_COMM_WORLD_SIZE': 'OMPI_COMM_WORLD_RANK',
  'JAX_NUM_PROCESSES': 'JAX_PROCESS_ID',
}


@contextlib.contextmanager
def processes(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat: int = 60,
) -> Iterator[None]:
  """Joins the processes of a run, if it has several.

  Args:
    coordinator: HOST:PORT of the first process; 'auto': as JAX finds out; None:
      'auto' where the environment speaks of several processes (SLURM, Open MPI,
      GKE, TPU pods, JAX_COORDINATOR_ADDRESS), else this process is alone.
    num_processes: of the run; None: as found.
    process_id: of this one, from 0; None: as found.
    heartbeat: seconds of silence after which a process counts as lost.

  Raises:
    ConfigError: the processes cannot be told from the arguments.
  """
  if heartbeat < 1:
    raise errors.ConfigError(
      f'--heartbeat={heartbeat}: processes are given 1 second or more'
    )
  if coordinator is None and not has_cluster(os.environ):
    if num_processes is not None or process_id is not None:
      raise errors.ConfigError(
        '--num_processes and --process_id say nothing without --coordinator;'
        ' name the HOST:PORT of process 0'
      )
    yield
    return
  _join(coordinator, num_processes, process_id, heartbeat)
  try:
    yield
  except errors.PeerLost:
    raise  # There is nobody to take leave of.
  except errors.SatjaxError:
    jax.distributed.shutdown()
    raise
  jax.distributed.shutdown()


@contextlib.contextmanager
def together() -> Iterator[None]:
  """What the processes can only do together.

  Raises:
    PeerLost: another process has ended, and this one cannot go on.
  """
  try:
    yield
  except errors.SatjaxError:
    raise
  except Exception as error:
    several = jax.process_count() > 1
    if several and any(sign in str(error) for sign in _SIGNS):
      first = str(error).splitlines()[0]
      raise errors.PeerLost(
        'another process of this run has ended, and this one cannot go on'
        f' without it ({first}); what was saved is whole: start all processes'
        ' again with the same commands'
      ) from error
    raise


def has_cluster(environment: Mapping[str, str]) -> bool:
  """Whether a launcher has started several processes.

  Raises:
    ConfigError: what it says of their number is no number.
  """
  counts = [_number(environment, name) for name in _LAUNCHERS]
  for own in _LAUNCHERS.values():
    _number(environment, own)
  several = any(count is not None and count > 1 for count in counts)
  # A shell inside of an allocation has the count, but is not one of the tasks.
  if 'SLURM_NTASKS' in environment and 'SLURM_STEP_NODELIST' not in environment:
    several = False
  return (
    several
    or ',' in environment.get('TPU_WORKER_HOSTNAMES', '')
    or 'MEGASCALE_COORDINATOR_ADDRESS' in environment
    or 'JAX_COORDINATOR_ADDRESS' in environment
  )


def _number(environment: Mapping[str, str], name: str) -> int | None:
  """What a launcher says, from 0; None: nothing. Raises ConfigError."""
  text = environment.get(name, '')
  if text and not re.fullmatch('[0-9]{1,18}', text):
    raise errors.ConfigError(
      f'{name}={text} in the environment is no whole number from 0; a launcher'
      ' sets it: unset it where there is one process, or name'
      ' --coordinator=HOST:PORT, --num_processes and --process_id'
    )
  return int(text) if text else None


def _check_launcher(environment: Mapping[str, str]) -> None:
  """Refuses what JAX would read as no number, or end the process for."""
  for name in ('SLURM_JOB_ID', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK'):
    _number(environment, name)
  port = _number(environment, 'JAX_COORDINATOR_PORT')
  if port is not None and not 0 < port < 2**16:
    raise errors.ConfigError(
      f'JAX_COORDINATOR_PORT={port} in the environment is no port; use a number'
      ' from 1 to 65535'
    )
  for total, own in _LAUNCHERS.items():
    count, number = _number(environment, total), _number(environment, own)
    if None not in (count, number) and number >= count:
      raise errors.ConfigError(
        f'{own}={number} of {total}={count} in the environment: processes are'
        ' counted from 0'
      )
  for name in ('JAX_COORDINATOR_ADDRESS', 'JAX_COORDINATOR_BIND_ADDRESS'):
    if name in environment:
      _check_address(name, environment[name])


def _check_address(name: str, address: str) -> None:
  found = re.fullmatch(r'(\[[^][]+\]|[^][:\s]+):([0-9]+)', address)
  if not found or not 0 < int(found[2]) < 2**16:
    raise errors.ConfigError(
      f'{name}={address}: give HOST:PORT of process 0, the port a number from 1'
      ' to 65535, such as node0:8476'
    )


def _check_free(address: str) -> None:
  """Whether process 0 can listen there; JAX may end the process if not."""
  family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  try:
    socket.create_server(
      ('', int(address.rpartition(':')[2])),
      family=family,
      dualstack_ipv6=family == socket.AF_INET6,
    ).close()
  except OSError as error:
    raise errors.ConfigError(
      f'--coordinator={address}: process 0 cannot listen there'
      f' ({error.strerror}); choose another port, for all processes'
    ) from error


def _join(coordinator, num_processes, process_id, heartbeat):
  if num_processes is None:
    num_processes = _number(os.environ, 'JAX_NUM_PROCESSES')
  if process_id is None:
    process_id = _number(os.environ, 'JAX_PROCESS_ID')
  address = None if coordinator == 'auto' else coordinator
  if address and (':' not in address or None in (num_processes, process_id)):
    raise errors.ConfigError(
      f'--coordinator={address}: give HOST:PORT of process 0, --num_processes'
      ' and --process_id (from 0); or --coordinator=auto where the launcher'
      ' knows them'
    )
  if address:
    _check_address('--coordinator', address)
  else:
    _check_launcher(os.environ)
  if address and not 0 <= process_id < num_processes:
    raise errors.ConfigError(
      f'--process_id={process_id} of --num_processes={num_processes}: processes'
      ' are counted from 0'
    )
  if address and process_id == 0:
    _check_free(address)
  # Said before, since a rendezvous that fails ends the process without Python.
  logging.warning(
    'waiting up to %d s for all processes%s; if this one aborts here, another'
    ' has not started or cannot reach the coordinator',
    _WAIT,
    f' at {address}' if address else '',
  )
  try:
    jax.distributed.initialize(
      address,
      num_processes,
      process_id,
      # All local devices, unless a launcher starts a process for each.
      cluster_detection_method='deactivate' if address else None,
      initialization_timeout=_WAIT,
      heartbeat_timeout_seconds=heartbeat,
      shutdown_timeout_seconds=_PART,
    )
  except (ValueError, LookupError, RuntimeError) as error:
    if 'DEADLINE_EXCEEDED' in str(error):
      raise
    raise errors.ConfigError(
      f'--coordinator={coordinator or "auto"}: {error} Name'
      ' --coordinator=HOST:PORT, --num_processes and --process_id'
    ) from error


def is_first() -> bool:
  """Whether this process writes what one process writes for all."""
  return jax.process_index() == 0


def agree(good: bool) -> bool:
  """Whether all processes say yes; they wait for each other."""
  return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def fetch(arrays: Any) -> Any:
  """A tree of arrays on the host, whole in all processes."""
  return multihost_utils.process_allgather(arrays, tiled=True)


def all_same(text: str) -> bool:
  """Whether all processes have the same text; they wait for each other."""
  digest = hashlib.sha256(text.encode()).digest()
  found = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
  return bool(np.all(found == found[0]))


@contextlib.contextmanager
def stop_signals() -> Iterator[dict[str, bool]]:
  """SIGTERM or SIGINT asks to stop after the step; a second ends at once.

  With several processes JAX listens for SIGTERM, so that all stop after the
  same step (`is_time_to_stop`); SIGINT is passed on as one.
  """
  stop = {'asked': False}
  old = {}
  several = jax.process_count() > 1

  def ask(number, frame):
    del frame
    stop['asked'] = True
    signal.signal(number, old[number])
    if several:
      signal.raise_signal(signal.SIGTERM)

  for number in (
    (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
  ):
    with contextlib.suppress(ValueError):  # Not in the main thread.
      old[number] = signal.signal(number, ask)
  try:
    yield stop
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def is_time_to_stop(asked: bool, step: int) -> bool:
  """Whether to stop after `step`: the same answer in all processes.

  Call it once after every step. A process that is alone stops when `asked`; of
  several, a SIGTERM to any stops all at a step that they agree on.
  """
  if jax.process_count() == 1:
    return asked
  return multihost_utils.reached_preemption_sync_point(step)
