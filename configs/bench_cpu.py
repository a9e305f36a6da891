"""The model that `satjax bench` times on a CPU, against PyTorch too.

8.4M parameters and 48 GFLOPs a step: about half a second on two cores. Tokens
are random, so the tokenizer may be smaller than the vocabulary.

    satjax bench --config=configs/bench_cpu.py
"""

from configs import base


def get_config():
  config = base.get_config()

  config.model.mlp_dim = 1024
  config.model.vocab_size = 4096
  config.model.scan = False

  config.train.batch_size = 4

  config.sparsity.head_rate = 0.5
  config.sparsity.channel_rate = 0.5
  config.sparsity.omitted_forward = 'skip'  # the paper's
  return config
