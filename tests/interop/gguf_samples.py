"""GGUF files of small models, written as llama.cpp's converter writes them."""

import gguf
import numpy as np

from satjax import tree

_NAMES = {
  'query': 'attn_q',
  'key': 'attn_k',
  'value': 'attn_v',
  'output': 'attn_output',
  'query_norm': 'attn_q_norm',
  'key_norm': 'attn_k_norm',
  'gate': 'ffn_gate',
  'up': 'ffn_up',
  'down': 'ffn_down',
  'attention_norm': 'attn_norm',
  'mlp_norm': 'ffn_norm',
  'embed': 'token_embd',
  'final_norm': 'output_norm',
  'unembed': 'output',
}
LETTERS = {
  'tokenizer.ggml.model': 'gpt2',
  'tokenizer.ggml.pre': 'smollm',
  'tokenizer.ggml.tokens': ['<s>', '</s>', *'abc12', 'Ġ', 'ab', 'Ġab', '12'],
  'tokenizer.ggml.token_type': [3, 3, *[1] * 9],
  'tokenizer.ggml.merges': ['a b', 'Ġ ab', '1 2'],
  'tokenizer.ggml.bos_token_id': 0,
  'tokenizer.ggml.eos_token_id': 1,
}
PIECES = {
  'tokenizer.ggml.model': 'llama',
  'tokenizer.ggml.tokens': [
    *('<unk>', '<s>', '</s>', '▁', 'a', 'b', 'ab', '▁a', '▁ab', '<0x0A>')
  ],
  'tokenizer.ggml.scores': [0, 0, 0, -9, -9, -9, -2, -3, -1, 0],
  'tokenizer.ggml.token_type': [2, 3, 3, *[1] * 6, 6],
  'tokenizer.ggml.unknown_token_id': 0,
  'tokenizer.ggml.bos_token_id': 1,
  'tokenizer.ggml.eos_token_id': 2,
}


def tensors_of(params, kind):
  """By name there; rows of query and key in pairs for Llamas."""
  found = {}
  for path, leaf in tree.flatten(params).items():
    leaf = np.asarray(leaf, np.float32)
    name = path.split('/')[-1]
    layers = enumerate(leaf) if path.startswith('blocks/') else [('', leaf)]
    for number, x in layers:
      if name.endswith('_bias'):
        full, x = f'{_NAMES[name[:-5]]}.bias', x.reshape(-1)
      else:
        full = f'{_NAMES[name]}.weight'
      if kind == 'llama' and name in ('query', 'key'):
        heads, dim, width = x.shape
        x = x.reshape(heads, 2, dim // 2, width).swapaxes(1, 2)
      if x.ndim > 1:
        x = x.reshape(-1, x.shape[-1])
      if name in ('output', 'down') and path.startswith('blocks/'):
        x = x.T
      prefix = f'blk.{number}.' if path.startswith('blocks/') else ''
      found[prefix + full] = np.ascontiguousarray(x)
  return found


def write(path, model, params, kind='llama', fields=(), change=lambda x: x):
  """A file of a model; `change` gets its tensors by name."""
  writer = gguf.GGUFWriter(path, kind)
  writer.add_block_count(model.num_layers)
  writer.add_context_length(128)
  writer.add_embedding_length(model.embed_dim)
  writer.add_feed_forward_length(model.mlp_dim)
  writer.add_head_count(model.num_heads)
  writer.add_head_count_kv(model.num_kv_heads)
  writer.add_key_length(model.head_dim)
  writer.add_layer_norm_rms_eps(model.norm_eps)
  writer.add_rope_freq_base(model.rope_theta)
  add = {
    int: writer.add_uint32,
    bool: writer.add_bool,
    str: writer.add_string,
    list: writer.add_array,
    float: writer.add_float32,
  }
  for name, value in dict(fields).items():
    add[type(value)](name, value)
  for name, x in change(tensors_of(params, kind)).items():
    if isinstance(x, tuple):  # numbers, and how they are stored
      writer.add_tensor(name, gguf.quants.quantize(*x), raw_dtype=x[1])
    else:
      writer.add_tensor(name, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
