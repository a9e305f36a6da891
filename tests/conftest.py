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
  """Makes TensorFlow impossible to import, even where it is installed."""

  def find_spec(self, name, path=None, target=None):
    del path, target
    if name.partition('.')[0] == 'tensorflow':
      raise ModuleNotFoundError(f'satjax must not need {name}', name=name)
    return None


sys.meta_path.insert(0, _NoTensorFlow())
