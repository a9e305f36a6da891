"""Adapters in the layout of PEFT: what `PeftModel.from_pretrained` reads.

A directory with `adapter_config.json` and `adapter_model.safetensors`, to be
put on the model directory that the run started from.
"""

from collections.abc import Iterator, Mapping
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from satjax import errors, files, hub, tree
from satjax.config.groups import LoraConfig, ModelConfig
from satjax.interop import huggingface, llama, writer
from satjax.model import lora
from satjax.tree import PyTree

CONFIG = 'adapter_config.json'
WEIGHTS = 'adapter_model.safetensors'
_EMBED = llama.TENSORS['embed'][0].removesuffix('.weight')


def save(
  directory: str | os.PathLike,
  config: LoraConfig,
  model: ModelConfig,
  adapters: PyTree,
  *,
  dtype: str = 'float32',
  contents: Mapping[str, bytes] | None = None,
) -> None:
  """Writes the adapters of a run; those that satjax wrote are replaced.

  Args:
    model: that they are of; its `init_from` names the base.
    adapters: `lora.init`, trained; None: the run has none.
    contents: other files by name, such as those of the tokenizer; a README.md
      gives way to one that another wrote there.

  Raises:
    ConfigError: there are no adapters, or no base that they fit.
    DataError: the base is not there any more.
    StorageError: the directory cannot be written, has too little room, holds
      adapters that satjax did not write, or a file reads back different.
  """
  if adapters is None:
    raise errors.ConfigError(
      f'config.lora.rank is {config.rank}, so the run has no adapters; export'
      ' the model that it trained'
    )
  _check_base(model)
  tensors = dict(_tensors(config, model, adapters, np.dtype(dtype)))
  num_bytes = sum(array.nbytes for array in tensors.values())
  described = {CONFIG: files.to_json(_describe(config, model))}
  contents = writer.without_foreign_card(
    Path(directory), described | dict(contents or {})
  )
  with writer.replacing(
    Path(directory), _foreign_adapters, num_bytes=num_bytes, last=[WEIGHTS]
  ) as folder:
    for name, content in contents.items():
      writer.write_file(folder / name, content)
    writer.write_tensors(folder / WEIGHTS, tensors, marks=writer.OURS)


def _check_base(model: ModelConfig) -> None:
  """Refuses what nobody could load: adapters are nothing without their base."""
  base, instead = model.init_from, 'export the whole model, without --adapter'
  if not base:
    raise errors.ConfigError(
      'the run began with random weights (config.model.init_from is empty), and'
      f' no directory holds what its adapters belong to; {instead}'
    )
  directory = hub.local(base)
  if huggingface.family(directory) == 'phi3':
    raise errors.ConfigError(
      f'{base}, which the run started from, is a Phi-3: it stores queries, keys'
      f' and values as one matrix, which no adapter here fits; {instead}'
    )
  rows = huggingface.read_config(directory).vocab_size
  if rows != model.vocab_size:
    raise errors.ConfigError(
      f'{base}, which the run started from, has {rows} words, and the run'
      f' {model.vocab_size}, which adapters do not hold; {instead}'
    )


def _modules(config: LoraConfig, model: ModelConfig) -> dict[str, str]:
  """Our path of each matrix that PEFT adapts, by its name; '{}' for a layer.

  A tied table is two modules there, which get the same adapters; PEFT's own
  merging would add both to the one table.
  """
  found = {}
  for path in lora.paths(config, model):
    both = path == 'embed' and model.tied
    for module in ('embed', 'unembed') if both else (path,):
      found[llama.TENSORS[module][0].removesuffix('.weight')] = path
  return found


def _tensors(
  config, model, adapters, dtype
) -> Iterator[tuple[str, np.ndarray]]:
  """lora_A [r, inputs] and lora_B [outputs, r] of every adapted matrix."""
  leaves = {path: np.asarray(x) for path, x in tree.flatten(adapters).items()}
  for name, path in _modules(config, model).items():
    is_layered = tree.AXES[path][0] == 'layers'
    is_table = name == _EMBED
    for layer in range(model.num_layers) if is_layered else [...]:
      rows = leaves[f'{path}/rows'][layer].reshape(-1, config.rank)
      columns = leaves[f'{path}/columns'][layer]
      # What is looked up has one input for each word, and D outputs.
      is_transposed = llama.TENSORS[path][1] or is_table
      factors = (rows.T, columns.T) if is_transposed else (columns, rows)
      for letter, factor in zip('AB', factors):
        kind = f'embedding_{letter}' if is_table else f'{letter}.weight'
        key = f'base_model.model.{name.format(layer)}.lora_{kind}'
        yield key, np.ascontiguousarray(factor, dtype)


def _describe(config: LoraConfig, model: ModelConfig) -> dict[str, Any]:
  names = _modules(config, model)
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': model.init_from,
    'r': config.rank,
    'lora_alpha': config.alpha,
    'lora_dropout': 0.0,
    'target_modules': [name.rsplit('.', 1)[-1] for name in names],
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }


def _foreign_adapters(root: Path) -> str | None:
  if not (root / WEIGHTS).exists():
    return None
  with safetensors.safe_open(root / WEIGHTS, framework='numpy') as file:
    ours = writer.OURS.items() <= (file.metadata() or {}).items()
  return None if ours else 'adapters'
