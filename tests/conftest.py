"""Eight CPU devices, programs that compile fast, and never TensorFlow."""

import gc
import importlib.machinery
import importlib.metadata
import os
import sys

# These halve the time of a compilation. But XLA ends a process that names a
# flag it does not know: only for the release that they were tried with.
_QUICKER = (
  [
    '--xla_cpu_use_fusion_emitters=false',
    '--xla_cpu_parallel_codegen_split_count=1',
  ]
  if importlib.metadata.version('jaxlib').startswith('0.10.')
  else []
)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    # The tests compile more than they compute.
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    *_QUICKER,
  ]
)
os.environ['HF_HUB_OFFLINE'] = '1'

# At that level a program of the tests compiles faster than it is read back.
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'


def pytest_collection_finish():
  """What is imported by now stays, and a trace of JAX allocates a lot."""
  gc.freeze()
  gc.set_threshold(50_000, 20, 50)


class _NoTensorFlow(importlib.machinery.PathFinder):
  """Makes `import tensorflow` fail, even where it is installed.

  So would None in `sys.modules`; but tensorflow_datasets takes that for it.
  """

  @classmethod
  def find_spec(cls, fullname, path=None, target=None):
    if fullname.partition('.')[0] == 'tensorflow':
      return None
    return super().find_spec(fullname, path, target)


_place = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[_place] = _NoTensorFlow
