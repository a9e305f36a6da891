"""Continual pre-training of Llama-2-70B (Touvron et al., 2023) with SAT.

Settings and caveats as in `configs/llama2_7b_cpt.py`; the shape differs. Eight
key/value heads serve eight query heads each, and stay whole.

    satjax train --config=configs/llama2_70b_cpt.py --workdir=runs/llama2_70b

On v5p:4x4x8: --config.mesh.fsdp=64 --config.mesh.tensor=2
--config.sparsity.shards=2 --config.train.microbatch_size=64.
"""

from configs import llama2_7b_cpt


def get_config():
  config = llama2_7b_cpt.get_config()

  config.model.num_layers = 80
  config.model.embed_dim = 8192
  config.model.num_heads = 64
  config.model.num_kv_heads = 8
  config.model.mlp_dim = 28_672
  return config
