"""LoRA."""

from configs import smollm2_sft


def get_config(source='stdlib:docstrings'):
  config = smollm2_sft.get_config(source)
  config.lora.rank = 16
  config.lora.alpha = 32.0
  config.lora.targets = (
    'query',
    'key',
    'value',
    'output',
    'gate',
    'up',
    'down',
  )
  return config
