"""Continual pre-training of Llama-2-13B (Touvron et al., 2023) with SAT.

Settings and caveats as in `configs/llama2_7b_cpt.py`; the shape differs.

    satjax train --config=configs/llama2_13b_cpt.py --workdir=runs/llama2_13b

On v6e:8x8: --config.mesh.fsdp=64 --config.train.microbatch_size=64.
"""

from configs import llama2_7b_cpt


def get_config():
  config = llama2_7b_cpt.get_config()

  config.model.num_layers = 40
  config.model.embed_dim = 5120
  config.model.num_heads = 40
  config.model.num_kv_heads = 40
  config.model.mlp_dim = 13_824
  return config
