"""Eight CPU devices, quick compilations, and never TensorFlow."""

import importlib.machinery
import os
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    # The tests compile more than they compute.
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
  ]
)
os.environ['HF_HUB_OFFLINE'] = '1'


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
