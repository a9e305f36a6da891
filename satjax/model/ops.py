"""The arithmetic of a decoder, as plain functions of arrays.

Letters: B batch, T query and S key positions, D embed_dim, F mlp_dim, N query
heads, K key/value heads, G query heads of one key/value head, H head_dim.
"""

import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from satjax.model import lora

Matrix = jax.Array | lora.LowRank
# Queries [B, T, N, H], and keys and values [B, S, K, H].
QKV = tuple[jax.Array, jax.Array, jax.Array]


@jax.custom_vjp
def rms_norm(x_BTD: jax.Array, gain_D: jax.Array, eps: float) -> jax.Array:
  """Divides by the root mean square, in float32 (Zhang & Sennrich, 2019)."""
  return _rms_norm_fwd(x_BTD, gain_D, eps)[0]


def _rms_norm_fwd(x_BTD, gain_D, eps):
  wide_BTD = _widen(x_BTD)
  mean_square = jnp.mean(jnp.square(wide_BTD), axis=-1, keepdims=True)
  inverse_BT1 = lax.rsqrt(mean_square + eps)
  normed_BTD = wide_BTD * inverse_BT1 * gain_D
  return normed_BTD.astype(x_BTD.dtype), (x_BTD, gain_D, inverse_BT1)


def _rms_norm_bwd(residuals, dy_BTD):
  # From the input alone: in float32 it would be three arrays that are kept, of
  # twice its size. The barrier as in `_swiglu_bwd`.
  x_BTD, gain_D, inverse_BT1 = lax.optimization_barrier(residuals)
  normed_BTD = _widen(x_BTD) * inverse_BT1
  dy_BTD = _widen(dy_BTD)
  dnormed_BTD = dy_BTD * gain_D
  along = jnp.mean(dnormed_BTD * normed_BTD, axis=-1, keepdims=True)
  dx_BTD = inverse_BT1 * (dnormed_BTD - normed_BTD * along)
  dgain_D = jnp.sum(dy_BTD * normed_BTD, axis=range(dy_BTD.ndim - 1))
  return dx_BTD.astype(x_BTD.dtype), dgain_D.astype(gain_D.dtype), None


rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


def dropout(x_BTD: jax.Array, keys_B: jax.Array, rate: float) -> jax.Array:
  """Zeros a share of the numbers (Srivastava et al., 2014).

  The others are divided by the share that is kept, and so the mean stays. Each
  row draws from a key of its own, whatever the rows beside it: microbatches and
  devices may share them out.
  """
  keep = 1 - rate

  def draw(key):
    return jax.random.bernoulli(key, jnp.float32(keep), x_BTD.shape[1:])

  return jnp.where(jax.vmap(draw)(keys_B), x_BTD / keep, 0)


def _widen(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rope_angles(
  positions_BT: jax.Array,
  head_dim: int,
  theta: float,
  scaling: tuple[Any, ...] = (),
) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine `[B, T, 1, H/2]` of the rotary angles (Su et al., 2021).

  `theta` is the base wavelength in tokens; scaling `ModelConfig.rope_scaling`.
  """
  frequency = theta ** (-jnp.arange(0, head_dim, 2) / head_dim)
  frequency = scale_rope(frequency, *scaling) if scaling else frequency
  angle = positions_BT[..., None, None] * frequency
  return jnp.cos(angle), jnp.sin(angle)


def scale_rope(
  frequency: jax.Array,
  kind: str,
  factor: float,
  low: float = 1.0,
  high: float = 1.0,
  original: float = 1.0,
) -> jax.Array:
  """Slower rotations, all alike ('linear') or the slow ones only ('llama3').

  Llama 3.1 keeps wavelengths below original / high, divides frequencies by the
  factor above original / low, and goes from one to the other in between.
  """
  if kind == 'linear':
    return frequency / factor
  turns = original * frequency / (2 * math.pi)
  share = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
  return frequency * (share + (1 - share) / factor)


def apply_rope(
  x_BTNH: jax.Array, angles: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Rotates each pair (i, i + H/2) of a head by its position's angle."""
  cos, sin = (a.astype(x_BTNH.dtype) for a in angles)
  first, second = jnp.split(x_BTNH, 2, axis=-1)
  return jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )


def project_in(x_BTD: jax.Array, w_FD: Matrix) -> jax.Array:
  """`x w^T`: `[..., D]`, `[*out, D]` -> `[..., *out]`; a neuron is a row."""
  if isinstance(w_FD, lora.LowRank):
    low_BTR = project_in(x_BTD, w_FD.columns)
    return project_in(x_BTD, w_FD.base) + project_in(low_BTR, w_FD.rows)
  *batch, dim = x_BTD.shape
  y = _contract_embed(x_BTD.reshape(-1, dim), w_FD.reshape(-1, dim))
  return y.reshape(*batch, *w_FD.shape[:-1])


def project_out(h_BTF: jax.Array, w_FD: Matrix) -> jax.Array:
  """`h w`: `[..., *in]`, `[*in, D]` -> `[..., D]`; a neuron is a row."""
  if isinstance(w_FD, lora.LowRank):
    low_BTR = project_out(h_BTF, w_FD.rows)
    return project_out(h_BTF, w_FD.base) + project_out(low_BTR, w_FD.columns)
  *neurons, dim = w_FD.shape
  batch = h_BTF.shape[: h_BTF.ndim - len(neurons)]
  h_XF = h_BTF.reshape(-1, math.prod(neurons))
  return _contract_neurons(h_XF, w_FD.reshape(-1, dim)).reshape(*batch, dim)


def logits(x_BTD: jax.Array, unembed_VD: jax.Array) -> jax.Array:
  """Scores of every word, in float32 or wider."""
  logits_BTV = project_in(x_BTD, unembed_VD)
  return logits_BTV.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))


@jax.custom_vjp
def _contract_embed(x_XD, w_FD):
  return jnp.einsum('XD,FD->XF', x_XD, w_FD)


@jax.custom_vjp
def _contract_neurons(h_XF, w_FD):
  return jnp.einsum('XF,FD->XD', h_XF, w_FD)


def _contract_embed_bwd(residuals, dy_XF):
  x_XD, w_FD = residuals
  return _contract_neurons(dy_XF, w_FD), weight_gradient(dy_XF, x_XD)


def _contract_neurons_bwd(residuals, dy_XD):
  h_XF, w_FD = residuals
  return _contract_embed(dy_XD, w_FD), weight_gradient(h_XF, dy_XD)


_contract_embed.defvjp(
  lambda x, w: (_contract_embed(x, w), (x, w)), _contract_embed_bwd
)
_contract_neurons.defvjp(
  lambda h, w: (_contract_neurons(h, w), (h, w)), _contract_neurons_bwd
)


def weight_gradient(
  h_XF: jax.Array, x_XD: jax.Array, dtype: jnp.dtype | None = None
) -> jax.Array:
  """`h^T x`, `[F, D]`, in `dtype`; None: that of the arguments.

  XLA's CPU matmul wants its left operand untransposed and copies it if not: a
  slow copy, since the wide activations `h` often have a power-of-two pitch.
  Transposing the narrow `x` and the small result instead halves the time of an
  MLP's backward pass.
  """

  def narrow_first(h_XF, x_XD):
    # Barriers, or XLA merges the transposes into the matmul again.
    x_DX = lax.optimization_barrier(x_XD.T)
    gradient_DF = jnp.einsum(
      'DX,XF->DF', x_DX, h_XF, preferred_element_type=dtype
    )
    return lax.optimization_barrier(gradient_DF).T

  def plain(h_XF, x_XD):
    return jnp.einsum('XF,XD->FD', h_XF, x_XD, preferred_element_type=dtype)

  return lax.platform_dependent(h_XF, x_XD, cpu=narrow_first, default=plain)


@jax.custom_vjp
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """`silu(gate) up` (Shazeer, 2020), of any shape."""
  return jax.nn.silu(gate) * up


def _swiglu_bwd(residuals, dy):
  # Recomputed from gate and up alone. Without the barrier XLA keeps what the
  # forward pass computed in between: two more arrays, and no time won.
  gate, up = lax.optimization_barrier(residuals)
  sigmoid = jax.nn.sigmoid(gate)
  silu = gate * sigmoid
  return dy * up * (sigmoid + silu * (1 - sigmoid)), dy * silu


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), _swiglu_bwd)


@jax.custom_vjp
def tap(x: jax.Array, weigh_by: jax.Array | None, into: jax.Array) -> jax.Array:
  """`x` as it is; the gradient of `into` sums up what flows through `x`.

  At each token: without `weigh_by`, `|x dx|` of each unit, summed over what a
  unit has, so `x` is `[B, T, *into.shape, ...]`; with it, another array like
  `x`, the product of the norms of `weigh_by` and of `dx`, and `into` is `[]`.
  """
  del weigh_by, into
  return x


def _tap_bwd(residuals, dx):
  x, weigh_by, into = residuals
  wide = _widen(dx)
  if weigh_by is None:
    axes = tuple(range(2 + into.ndim, x.ndim))
    flow = jnp.abs(jnp.sum(_widen(x) * wide, axis=axes))
  else:
    norms = (jnp.linalg.norm(y, axis=-1) for y in (_widen(weigh_by), wide))
    flow = math.prod(norms)
  return dx, None, jnp.sum(flow, axis=(0, 1)).astype(into.dtype)


tap.defvjp(lambda x, w, into: (x, (x, w, into)), _tap_bwd)
