"""Continual pre-training of Llama-2-7B (Touvron et al., 2023) with SAT.

The shape is the model's own; the omission rates and the ladder are ours, since
the SAT paper's values were not available to us. `config.model.init_from` names
weights and tokenizer, a Hugging Face directory:

    satjax train --config=configs/llama2_7b_cpt.py --workdir=runs/llama2_7b \
      --config.model.init_from=MODEL_DIR

Without it, it reads bytes from random weights: enough to measure speed. Dense,
which is what to try first: `--config.sparsity.head_rate=0
--config.sparsity.channel_rate=0`.

The mesh depends on the chips; `satjax plan --topology` says what fits, and
experiments/results/plan has what it said of these:

    v6e:8x8    --config.mesh.fsdp=32 --config.mesh.tensor=2 \
               --config.sparsity.shards=2 --config.train.microbatch_size=64
    v5p:2x4x4  --config.mesh.fsdp=32 --config.train.microbatch_size=64 \
               --config.model.remat=none
"""

from configs import base


def get_config():
  config = base.get_config()

  config.model.num_layers = 32
  config.model.embed_dim = 4096
  config.model.num_heads = 32
  config.model.num_kv_heads = 32
  config.model.head_dim = 128
  config.model.mlp_dim = 11008
  config.model.vocab_size = 32_000
  config.model.dtype = 'bfloat16'
  config.model.remat = 'full'

  config.data.seq_len = 4096

  # 256 rows of 4096 tokens: 1048576 tokens a step.
  config.train.batch_size = 256
  config.train.num_steps = 2_000
  config.train.eval_every = 0.125
  config.train.checkpoint_every = 0.25

  # Usual for such runs, and not measured; by its width 'auto' takes 1.1e-5.
  config.optimizer.peak_lr = 4e-5
  config.optimizer.warmup_steps = 0.05

  config.sparsity.head_rate = 0.5
  config.sparsity.channel_rate = 0.5
  config.sparsity.omitted_forward = 'skip'  # the paper's
  config.sparsity.channel_multiple = 128
  return config
