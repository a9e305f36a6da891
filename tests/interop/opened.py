"""What transformers reads in model directories; runs under any release of it.

python -m tests.interop.opened DIRECTORY ... prints a JSON list.
"""

import json
import os
import sys
from typing import Any

os.environ['HF_HUB_OFFLINE'] = '1'  # read when transformers is imported
import torch  # noqa: E402
import transformers  # noqa: E402

TEXTS = ('Hello there', ' def f(x):\n  return x\n', 'é', '  two')
CHAT = (
  {'role': 'user', 'content': 'Is it? '},
  {'role': 'assistant', 'content': 'It is.'},
  {'role': 'user', 'content': 'Why?'},
)
SETTINGS = ('max_position_embeddings', 'pad_token_id', 'tie_word_embeddings')
GENERATION = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'suppress_tokens')


def look(directory: str) -> dict[str, Any]:
  """Tokens, chats, logits and settings of a directory."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32
  ).eval()
  with torch.no_grad():
    logits = model(torch.arange(9)[None]).logits
  templates = tokenizer.chat_template
  names = list(templates) if isinstance(templates, dict) else [None]
  return {
    'tokens': [tokenizer(text).input_ids for text in TEXTS],
    'chats': [
      tokenizer.apply_chat_template(
        list(CHAT),
        chat_template=name,
        tokenize=False,
        add_generation_prompt=True,
      )
      for name in names
      if templates
    ],
    'special': [tokenizer.bos_token, tokenizer.eos_token],
    'decoded': tokenizer.decode(tokenizer(TEXTS[0]).input_ids),
    'logits': logits.double().tolist(),
    'config': {name: getattr(model.config, name) for name in SETTINGS},
    'generation': {
      name: getattr(model.generation_config, name) for name in GENERATION
    },
  }


if __name__ == '__main__':
  release = {'release': transformers.__version__}
  print(json.dumps([release, *map(look, sys.argv[1:])]))
