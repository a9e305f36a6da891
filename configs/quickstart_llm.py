"""Fine-tuning of the second quickstart: adapters for SmolLM2-135M-Instruct.

`experiments/quickstart_llm.py` writes the chats, into a folder that is the
argument of this file: train.jsonl, validation.jsonl, and other text to see what
is forgotten. The learning rate is a sixth of the default of adapters. At the
default the task is learned better (4.07 -> 2.39), but other questions are
answered in its style ("The capital of France."). On chats of your own:
`configs/smollm2_lora.py`.

    satjax train --config=configs/quickstart_llm.py \\
      --workdir=runs/quickstart-llm/run
"""

from configs import lora


def get_config(chats='runs/quickstart-llm/chats'):
  config = lora.get_config()  # rank 16, beside all matrices
  config.model.scan = True
  config.model.init_from = 'models/smollm2'

  config.data.train = (f'jsonl:{chats}/train.jsonl',)
  config.data.eval = (
    f'jsonl:{chats}/validation.jsonl',
    f'jsonl:{chats}/other.jsonl',
  )
  config.data.held_out = 0.0  # the files of `eval` were kept apart

  # 4 rows of 256 tokens, about 16 chats a step.
  config.data.seq_len = 256
  config.train.batch_size = 4
  config.train.num_steps = 80
  config.optimizer.peak_lr = 2e-4
  config.train.log_every = 2
  config.train.eval_every = 80  # before the first step and after the last
  config.train.eval_batches = 8
  config.train.checkpoint_every = 20
  return config
