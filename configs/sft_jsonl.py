"""Supervised fine-tuning on JSONL of your own: questions and answers, or chats.

One object a line, with the fields "question" and "answer" (or other usual
names), or with "messages" of a chat. Look at what is learned first:

    satjax preview --config=configs/sft_jsonl.py:'jsonl:chats/*.jsonl'
    satjax train --config=configs/sft_jsonl.py:'jsonl:chats/*.jsonl' \
      --workdir=runs/chats --config.model.init_from=models/base

Other fields: `--config.data.columns="('ask', 'reply')"`. The template should be
the one that the model knows: llama2, llama3, chatml (Qwen), alpaca or plain.
"""

from configs import sft


def get_config(source='jsonl:data/*.jsonl'):
  config = sft.get_config()
  config.model.scan = True  # the model may be deep, and compiles once
  # Dense; SAT makes steps faster, and pays for it in loss (docs/results.md).
  config.sparsity.head_rate = 0.0
  config.sparsity.channel_rate = 0.0
  config.data.train = (source,)
  config.data.eval = (source,)
  config.data.template = 'chatml'
  return config
