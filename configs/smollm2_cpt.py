"""Continual pre-training of SmolLM2-135M, or of another small Llama."""

from configs import base


def get_config(source='stdlib:code'):
  config = base.get_config()
  config.model.init_from = 'models/smollm2'
  # That of the model, whichever `--config.model.init_from` names.
  config.data.tokenizer = 'hf:' + config.model.get_oneway_ref('init_from')

  config.data.train = (source,)
  config.data.eval = (source, 'stdlib:docs')
  config.data.seq_len = 128

  # 4 rows of 128 tokens: 512 tokens a step.
  config.train.num_steps = 20
  config.train.batch_size = 4
  config.train.log_every = 5
  config.train.eval_every = 20
  config.train.eval_batches = 4
  config.train.checkpoint_every = 0
  return config
