"""Causal attention: which implementation runs, and how it is called.

Letters as in `ops`.
"""

import functools

from absl import logging
import jax
from jax.ad_checkpoint import checkpoint_name

from satjax import errors
from satjax.model import blocked_attention, cudnn, ops, splash

# Of the result, for `jax.ad_checkpoint`, and of its operations, for profiles.
NAME = 'attention'

# What each platform runs by itself. 'blocked' and 'xla' run everywhere.
_AUTO = {'cpu': 'blocked', 'gpu': 'cudnn', 'tpu': 'splash'}
_PLATFORM = {'cudnn': 'gpu', 'splash': 'tpu'}


def resolve(kind: str, platform: str) -> str:
  """`model.attention` on a platform, never 'auto'; ConfigError if not there."""
  if kind == 'auto':
    return _AUTO.get(platform, 'xla')
  if _PLATFORM.get(kind, platform) != platform:
    raise errors.ConfigError(
      f'config.model.attention {kind!r} runs on a {_PLATFORM[kind].upper()},'
      f' and the devices are of platform {platform!r}; use'
      f" {_AUTO.get(platform, 'xla')!r}, or 'auto'"
    )
  return kind


@jax.named_scope(NAME)
def attention(
  qkv: ops.QKV,
  segments_BT: jax.Array | None,
  window: int = 0,
  kind: str = 'auto',
) -> jax.Array:
  """Causal attention within segments, `[B, T, N, H]`, softmax in float32.

  Args:
    qkv: S equal to T; head n uses key/value head `n // (N / K)`.
    segments_BT: document number of each position, in runs; None: one document
      a row.
    window: how many positions of the row a query sees, itself and those before
      it (Beltagy et al., 2020; Jiang et al., 2023); 0: all.
    kind: 'blocked', 'xla', 'cudnn' or 'splash'; 'auto': by the default backend.
  """
  _, length, _, head_dim = qkv[0].shape
  window = window if window < length else 0
  if kind == 'auto':
    kind = resolve(kind, jax.default_backend())
  kind = usable(kind, qkv[0].dtype.name, head_dim)
  arguments = qkv, segments_BT, window
  # Fused kernels have results of their own to keep, with this one among them.
  if kind == 'splash' and splash.is_placeable():
    return splash.attention(*arguments, name=NAME)
  if kind == 'cudnn':
    is_packed = segments_BT is not None and packs()
    return (cudnn.attention if is_packed else cudnn.masked)(*arguments)
  if kind == 'blocked':
    out_BTNH = blocked_attention.attention(*arguments)
  else:
    out_BTNH = cudnn.masked(*arguments, 'xla')
  return checkpoint_name(out_BTNH, NAME)


@functools.cache
def packs() -> bool:
  """`cudnn.can_pack`, with a warning where it cannot."""
  if not cudnn.can_pack():
    logging.warning(
      'Attention gets the documents of a row as a T x T mask, which takes the'
      ' time and memory that flash attention saves: their lengths alone need a'
      ' GPU of compute capability 9.0 or later (Hopper), and cuDNN 9.6. Set'
      " config.data.attend='row' if a row may be one causal sequence."
    )
  return cudnn.can_pack()


@functools.cache
def usable(kind: str, dtype: str, head_dim: int) -> str:
  """`kind`, or 'xla' with a warning where the fused kernel cannot do it."""
  if kind != 'cudnn':
    return kind
  if dtype in ('bfloat16', 'float16') and head_dim % 8 == 0 and head_dim <= 128:
    return kind
  logging.warning(
    'Attention falls back to XLA and materialises a T x T matrix for each'
    ' head: cuDNN needs bfloat16 or float16 and a head_dim that is a multiple'
    ' of 8, at most 128; this model has %s and %d. Set'
    " config.model.dtype='bfloat16'.",
    dtype,
    head_dim,
  )
  return 'xla'
