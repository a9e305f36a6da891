"""Eight CPU devices, quick compilations, and never TensorFlow."""

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

# Makes `import tensorflow` fail, even where it is installed.
sys.modules['tensorflow'] = None
