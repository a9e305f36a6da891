"""Fine-tuning."""

from configs import smollm2_cpt


def get_config(source='stdlib:docstrings'):
  config = smollm2_cpt.get_config(source)
  config.data.eval = (source, 'stdlib:code')
  config.data.packing = 'best_fit'
  config.data.seq_len = 256
  config.train.batch_size = 2
  return config
