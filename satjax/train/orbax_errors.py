"""What an error of Orbax speaks of: the files, the machine, or neither."""

import logging
import os
import re

# What TensorStore says of the machine, such as a mount that is gone: another
# time it may work. A file is to blame if it is not there, or by a status that
# comes without an error of the system (DATA_LOSS...).
_STATUS = re.compile(
  r'ABORTED:|CANCELLED:|DEADLINE_EXCEEDED:|INTERNAL:|PERMISSION_DENIED:'
  r'|RESOURCE_EXHAUSTED:|UNAVAILABLE:|UNKNOWN:'
)
_ERRNO = re.compile(r"os_error_code='(?!(2|20|21)')")  # but ENOENT and kin
_NO_FILE = FileNotFoundError | IsADirectoryError | NotADirectoryError
# What the machine and bugs raise, never a file.
_NO_DAMAGE = MemoryError | RuntimeError | TypeError | AttributeError
_NO_DAMAGE |= NameError | ImportError | AssertionError


def proves_damage(error: BaseException) -> bool:
  """Whether an error of Orbax can only come from what the files hold.

  Not a lack of memory or of open files, nor a bug: a checkpoint is never set
  aside for these.
  """
  causes = [error]
  while cause := causes[-1].__cause__ or causes[-1].__context__:
    causes.append(cause)
  if of_system := [e for e in causes if isinstance(e, OSError)]:
    return all(isinstance(e, _NO_FILE) for e in of_system)
  if any(isinstance(e, _NO_DAMAGE) for e in causes):
    return False
  if any(p.search(str(e)) for e in causes for p in (_STATUS, _ERRNO)):
    return False
  # Orbax raises a bare Exception where TensorStore could not read an array.
  return type(error) is Exception or isinstance(error, ValueError | KeyError)


def storage_problem(error: BaseException) -> str | None:
  """What the file system says in an error of a save; None: it is another's."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # TensorStore raises ValueError of a status: 'RESOURCE_EXHAUSTED: ...'.
  text = str(error)
  if number := re.search(r"os_error_code='(\d+)'", text):
    return os.strerror(int(number[1]))
  return text.splitlines()[0] if _STATUS.match(text) else None


def is_not_of_orbax(record: logging.LogRecord) -> bool:
  """A filter of what Orbax logs as an error: it raises all of it, too."""
  is_error = record.levelno >= logging.ERROR
  return not (is_error and '/orbax/' in record.pathname)
