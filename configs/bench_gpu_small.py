"""`bench_gpu` for a model of 0.13B parameters, 64k tokens a step.

satjax bench --config=configs/bench_gpu_small.py --rounds=10 --steps=5
"""

from configs import bench_gpu


def get_config():
  config = bench_gpu.get_config()
  config.model.num_layers = 12
  config.model.embed_dim = 768
  config.model.num_heads = 12
  config.model.num_kv_heads = 12
  config.model.mlp_dim = 2048
  config.train.batch_size = 32
  return config
