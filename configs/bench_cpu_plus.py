"""`bench_cpu` with twice the rows: the refresh looks at a smaller share.

satjax bench --config=configs/bench_cpu_plus.py
"""

from configs import bench_cpu


def get_config():
  config = bench_cpu.get_config()
  config.train.batch_size = 8
  return config
