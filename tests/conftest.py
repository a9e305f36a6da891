"""Eight CPU devices, no silent broadcasting, and never TensorFlow."""

import os
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_force_host_platform_device_count=8'
)
os.environ['HF_HUB_OFFLINE'] = '1'


class _NoTensorFlow:
  """Raises where anything imports TensorFlow."""

  def find_spec(self, name, path=None, target=None):
    del path, target
    if name.partition('.')[0] == 'tensorflow':
      raise AssertionError(f'something imports {name}')
    return None


sys.meta_path.insert(0, _NoTensorFlow())
