"""Models by name: a path on this machine, or an id of the Hugging Face hub.

The hub's own library looks after the cache, the token and the environment
variables that its users know (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE).
"""

import os
import pathlib
import re

from satjax import errors

FORMS = (
  'a directory, FILE.gguf, or of the Hugging Face hub ORGANISATION/NAME or'
  ' ORGANISATION/NAME/FILE.gguf, with @REVISION to pin one'
)
# Pickles are never fetched, nor a second copy of the weights.
_WANTED = ['*.json', '*.safetensors', '*.model', '*.jinja']
_UNWANTED = ['consolidated*', 'original/*']
_ID = re.compile(r'([\w.-]+/[\w.-]+?)(?:/([\w./-]+\.gguf))?(?:@([\w./-]+))?')


def is_id(spec: str | os.PathLike) -> bool:
  """Whether a name is no path here, and has the form of an id of the hub."""
  if not _ID.fullmatch(os.fspath(spec)):
    return False
  return not os.path.exists(os.path.expanduser(spec))


def local(spec: str | os.PathLike) -> pathlib.Path:
  """Where a model is: a path as it is, an id once its files are here.

  Raises:
    ConfigError: the hub has no such model, or cannot be asked.
  """
  if not is_id(spec):
    return pathlib.Path(spec).expanduser()
  name, file, revision = _ID.fullmatch(os.fspath(spec)).groups()
  what = f'{spec}, which is no path here but a model of the Hugging Face hub,'
  huggingface_hub = errors.import_optional('huggingface_hub', what, 'data')
  try:
    if file:
      found = huggingface_hub.hf_hub_download(name, file, revision=revision)
    else:
      found = huggingface_hub.snapshot_download(
        name,
        revision=revision,
        allow_patterns=_WANTED,
        ignore_patterns=_UNWANTED,
      )
  except (OSError, ValueError) as error:  # all of the library's own
    said = str(error).strip().partition('\n')[0]
    raise errors.ConfigError(
      f'{spec} is no path here, and the Hugging Face hub does not give it:'
      f' {said} ({type(error).__name__}); check the name and the network, log'
      ' in with `hf auth login` where a model asks for it, or name a directory'
    ) from error
  return pathlib.Path(found)
