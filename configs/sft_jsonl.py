"""Supervised fine-tuning on JSONL of your own: questions and answers, or chats.

One object a line, with the fields "question" and "answer" (or other usual
names), or with "messages" of a chat. Look at what is learned first:

    satjax preview --config=configs/sft_jsonl.py:'jsonl:chats/*.jsonl'
    satjax train --config=configs/sft_jsonl.py:'jsonl:chats/*.jsonl' \
      --workdir=runs/chats --config.model.init_from=models/base

Other fields: `--config.data.columns="('ask', 'reply')"`. Chats are written by
the chat template of the tokenizer. For one that has none, choose a built-in
one, such as `--config.data.template=chatml`; else they are plain text. For a
real model, and what it forgets: `configs/smollm2_sft.py`.
"""

from configs import sft


def get_config(source='jsonl:data/*.jsonl'):
  config = sft.get_config()
  config.model.scan = True  # the model may be deep, and compiles once
  config.data.train = (source,)
  config.data.eval = (source,)
  return config
