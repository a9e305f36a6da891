"""Fine-tuning of SmolLM2-135M-Instruct, or of another model, with LoRA.

The data of `configs/smollm2_sft.py`; the model stands still, and adapters of
rank 16 beside all matrices of its blocks train. A few minutes on two cores:

    make real-model
    satjax train --config=configs/smollm2_lora.py:'jsonl:chats/*.jsonl' \
      --workdir=runs/adapters
    satjax export --workdir=runs/adapters --out=models/adapter --adapter

Tried, with 20 steps of 512 tokens, on the chats of
docs/fine_tune_on_my_chats.md:

    peak_lr          the chats         stdlib:code
    1.28e-3, 'auto'  4.056 -> 2.308    2.191 -> 2.197
    2e-4             4.056 -> 2.682    2.191 -> 2.183
"""

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
