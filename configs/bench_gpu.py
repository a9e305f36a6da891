r"""The model that `satjax bench` times on one GPU: 1.1B parameters.

The shape of TinyLlama with random weights, 16k tokens a step, so that the dense
model, its copy and a sparse one fit in 140 GB together. The ladder goes down
from the first step on, in five equal parts: 0.5, 0.375, 0.25, 0.125, 0.

    satjax bench --config=configs/bench_gpu.py --rounds=10 --steps=5 \
      --rates 0.5 --forwards skip --torch
    satjax bench --config=configs/bench_gpu.py --rounds=10 --steps=5 \
      --rates --torch 'torch compile'
    satjax bench --config=configs/bench_gpu.py --ladder --rounds=1
    satjax bench --config=configs/bench_gpu.py --profile=runs/profile
"""

from configs import tinyllama_1b_cpt


def get_config():
  config = tinyllama_1b_cpt.get_config()
  config.train.batch_size = 8
  config.train.microbatch_size = 0
  config.train.num_steps = 500
  # Whole logits would bring a scatter into the backward pass.
  config.train.loss_chunk = 8192

  config.sparsity.split = 0.2
  config.sparsity.rungs = 4
  return config
