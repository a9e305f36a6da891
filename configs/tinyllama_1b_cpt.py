"""Continual pre-training of TinyLlama-1.1B (Zhang et al., 2024) with SAT.

Settings and caveats as in `configs/llama2_7b_cpt.py`; the shape differs, and
groups of 8 query heads share a key/value head, so that rates move in eighths.
Any Llama may stand in: its directory sets the shape, and half of its heads and
channels become the nearest that its groups allow. Dense, which is what to try
first: `--config.sparsity.head_rate=0 --config.sparsity.channel_rate=0`.

    satjax train --config=configs/tinyllama_1b_cpt.py --workdir=runs/tinyllama \
      --config.model.init_from=MODEL_DIR
"""

from configs import llama2_7b_cpt


def get_config():
  config = llama2_7b_cpt.get_config()

  config.model.num_layers = 22
  config.model.embed_dim = 2048
  config.model.num_heads = 32
  config.model.num_kv_heads = 4
  config.model.head_dim = 64
  config.model.mlp_dim = 5632
  config.model.remat = 'none'

  config.data.seq_len = 2048
  config.train.batch_size = 512  # 1M tokens a step, as for the 7B
  # At once, over all devices: one of 80 GB holds 8 rows, says `satjax plan`.
  config.train.microbatch_size = 8
  return config
