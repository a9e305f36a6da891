"""Supervised fine-tuning of SmolLM2-135M-Instruct, or of another model.

Signatures of the Python standard library, answered by their docstrings, or
chats of your own; all in the chat template of the model. The loss counts the
answers alone; source code shows what is forgotten. A few minutes on two cores:

    make real-model
    satjax train --config=configs/smollm2_sft.py --workdir=runs/docstrings
    satjax train --config=configs/smollm2_sft.py:'jsonl:chats/*.jsonl' \
      --workdir=runs/chats

Another model, longer runs and SAT as in `configs/smollm2_cpt.py`. Tried, with
20 steps of 512 tokens, on the chats of docs/fine_tune_on_my_chats.md:

    peak_lr          the chats         stdlib:code
    8e-5, 'auto'     4.056 -> 2.244    2.191 -> 2.176
    2e-5             4.056 -> 2.545    2.191 -> 2.178
"""

from configs import smollm2_cpt


def get_config(source='stdlib:docstrings'):
  config = smollm2_cpt.get_config(source)

  config.data.eval = (source, 'stdlib:code')
  config.data.packing = 'best_fit'

  # 2 rows of 256 tokens: 512 tokens a step, of which few are answers.
  config.data.seq_len = 256
  config.train.batch_size = 2
  return config
