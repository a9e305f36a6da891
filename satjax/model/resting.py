"""Layers that rest among layers that train: all run, and few run backwards.

One program for any choice of layers: a scan over those that train, and below
each of them, and above the last, a loop over the resting layers that lie there.
How many these are is data. So no gradient of what rests is ever formed, and no
conditional pays for both of its sides.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend import core
import jax.numpy as jnp

from satjax import sharding
from satjax.tree import PyTree

# From the residual stream, the weights of a layer and what else it gets, to the
# residual stream.
Layer = Callable[[jax.Array, PyTree, PyTree], jax.Array]
# How a gradient meets a resting layer: it passes by, or goes through.
HOW = ('exact', 'through')


class Resting(NamedTuple):
  """P layers that rest among A that train.

  Attributes:
    weights: stacked on layers, [P, ...]; may be in the memory of the host.
    own: what else each of them gets, [P, ...].
    before: int32 [A], how many of them lie below each layer that trains.
  """

  weights: PyTree
  own: PyTree
  before: jax.Array

  def at(self, number: jax.Array) -> tuple[PyTree, PyTree]:
    """Weights of a layer, in device memory, and what else it gets."""
    return _at((self.weights, self.own), number)


def run(
  layer: Layer,
  x: jax.Array,
  weights: PyTree,
  own: PyTree,
  resting: Resting,
  *,
  through: bool,
  unroll: int = 1,
) -> jax.Array:
  """All layers in order; gradients reach `x` and `weights` alone.

  Args:
    layer: any of them.
    x: the residual stream.
    weights: of those that train, stacked on layers, [A, ...].
    own: what else each of them gets, [A, ...].
    resting: the others.
    through: whether gradients go through resting layers, or pass them by, along
      the residual stream. Where `x` needs no gradient, none goes below the
      first layer that trains.
    unroll: of the scan over layers that train.
  """
  leaves, form = jax.tree.flatten(weights)
  fixed, form_of_fixed = jax.tree.flatten((own, resting))
  count = len(jax.tree.leaves(resting.weights)[0])
  rules = _Rules(layer, form, form_of_fixed, count, through, unroll)
  program = jax.custom_vjp(rules.plain)
  program.defvjp(rules.forward, lambda pull, dy: pull(dy), symbolic_zeros=True)
  return program(x, leaves, fixed)


class _Rules(NamedTuple):
  """How `run` runs; weights that train, and all else, as flat lists."""

  layer: Layer
  form: Any  # of the weights of a layer that trains
  form_of_fixed: Any  # of what its layers get besides, and of `Resting`
  count: int  # of resting layers
  through: bool
  unroll: int

  def train(self, x, leaves, own):
    return self.layer(x, self.form.unflatten(leaves), own)

  def rest(self, x, leaves, inputs):
    del leaves  # it has none that train
    return self.layer(x, *inputs)

  def lengths(self, resting):
    return resting.before, self.count, self.unroll

  def plain(self, x, trained, fixed):
    own, resting = self.form_of_fixed.unflatten(fixed)
    return _upward(
      lambda number, x: self.layer(x, *resting.at(number)),
      lambda x, inputs: (self.train(x, *inputs), None),
      x,
      (trained, own),
      self.lengths(resting),
    )[0]

  def forward(self, x, trained, fixed):
    reaches_x, wanted = x.perturbed, [leaf.perturbed for leaf in trained]
    x, trained, fixed = jax.tree.map(lambda y: y.value, (x, trained, fixed))
    own, resting = self.form_of_fixed.unflatten(fixed)
    of_train = _Backward(self.train, wanted, x, *_first((trained, own)))
    of_rest = _Backward(self.rest, [], x, [], _first(resting[:2]))
    saved = of_rest.buffers(self.count) if self.through else []

    def at_rest(number, carry):
      x, saved = carry
      y, kept = of_rest.forward(x, [], resting.at(number))
      return y, [
        lax.dynamic_update_index_in_dim(all_, one, number, 0)
        for all_, one in zip(saved, kept)
      ]

    def in_training(carry, inputs):
      y, kept = of_train.forward(carry[0], *inputs)
      return (y, carry[1]), kept

    inputs, lengths = (trained, own), self.lengths(resting)
    (y, saved), kept = _upward(
      at_rest, in_training, (x, saved), inputs, lengths
    )
    pull = functools.partial(
      self.backward, of_train, of_rest, wanted, reaches_x
    )
    return y, jax.tree_util.Partial(pull, (trained, fixed, saved, kept))

  def backward(self, of_train, of_rest, wanted, reaches_x, arrays, dy):
    trained, fixed, saved, kept = arrays
    own, resting = self.form_of_fixed.unflatten(fixed)

    def at_rest(number, dx):
      kept = _at(saved, number)
      return of_rest.backward(kept, [], resting.at(number), dx)[0]

    dx, grads = _downward(
      at_rest if self.through else None,
      lambda dx, inputs: of_train.backward(*inputs, dx),
      dy,
      (kept, trained, own),
      self.lengths(resting),
      reaches_x=reaches_x,
    )
    grads = iter(grads)
    return dx, [next(grads) if each else None for each in wanted], None


class _Backward:
  """Runs a layer so that its backward pass can follow.

  What depends on its input is kept, every array once. All else, its weights
  among it, is at hand again by then.
  """

  def __init__(self, layer: Any, wanted: Sequence[bool], *shapes: Any):
    """`layer(x, leaves, own)`, and the shapes of its arguments.

    `x` and the `wanted` leaves are to have gradients.
    """
    self._layer, self._wanted = layer, wanted
    self._x = shapes[0]
    jaxpr = jax.make_jaxpr(self._run)(*shapes).jaxpr
    depends = {jaxpr.invars[0]}
    for equation in jaxpr.eqns:
      names = [x for x in equation.invars if isinstance(x, core.Var)]
      if not depends.isdisjoint(names):
        depends |= {*equation.outvars}
    found = [
      x if isinstance(x, core.Var) and x in depends else None
      for x in jaxpr.outvars[1:]
    ]
    self._names = list(dict.fromkeys(x for x in found if x is not None))
    self._found = found

  def _vjp(self, x, leaves, own):
    def of_wanted(x, some):
      some = iter(some)
      mixed = [
        next(some) if each else leaf for each, leaf in zip(self._wanted, leaves)
      ]
      return self._layer(x, mixed, own)

    some = [leaf for each, leaf in zip(self._wanted, leaves) if each]
    return jax.vjp(of_wanted, x, some)

  def _run(self, x, leaves, own):
    y, pull = self._vjp(x, leaves, own)
    return y, *jax.tree.leaves(pull)

  def buffers(self, count: int) -> list[jax.Array]:
    """Room for what is kept of so many layers."""
    return [
      jnp.zeros((count, *x.aval.shape), x.aval.dtype) for x in self._names
    ]

  def forward(self, x, leaves, own) -> tuple[jax.Array, list[jax.Array]]:
    """What the layer gives, and what is to be kept of it."""
    y, *found = self._run(x, leaves, own)
    return y, [found[self._found.index(name)] for name in self._names]

  def backward(
    self, kept, leaves, own, dy
  ) -> tuple[jax.Array, list[jax.Array]]:
    """Gradients of the input and of the wanted leaves."""
    nothing = jnp.zeros(self._x.shape, self._x.dtype)
    again, form = jax.tree.flatten(self._vjp(nothing, leaves, own)[1])
    by_name = dict(zip(self._names, kept))
    return form.unflatten(
      leaf if name is None else by_name[name]
      for name, leaf in zip(self._found, again)
    )(dy)


def _upward(rest, train, carry, inputs, lengths):
  """`rest(number, carry)` and `train(carry, inputs)`, from below to above."""
  before, count, unroll = lengths

  def one(carry, step):
    first, stop, inputs = step
    return train(lax.fori_loop(first, stop, rest, carry), inputs)

  steps = _firsts(before), before, inputs
  carry, found = lax.scan(one, carry, steps, unroll=unroll)
  return lax.fori_loop(before[-1], count, rest, carry), found


def _downward(rest, train, carry, inputs, lengths, *, reaches_x):
  """The same from above to below; without `rest`, what rests is passed by."""
  before, count, unroll = lengths

  def loop(first, stop, carry):
    if rest is None:
      return carry

    def back(number, carry):
      return rest(stop - 1 - number, carry)

    return lax.fori_loop(0, stop - first, back, carry)

  def one(carry, step):
    first, stop, inputs = step
    carry, found = train(carry, inputs)
    return loop(first, stop, carry), found

  firsts = _firsts(before)
  if not reaches_x:
    firsts = firsts.at[0].set(before[0])
  carry = loop(before[-1], count, carry)
  steps = firsts, before, inputs
  return lax.scan(one, carry, steps, reverse=True, unroll=unroll)


def _firsts(before):
  return jnp.concatenate([jnp.zeros_like(before[:1]), before[:-1]])


def _at(stacked, number):
  def one(x):
    return sharding.fetch(lax.dynamic_index_in_dim(x, number, keepdims=False))

  return jax.tree.map(one, stacked)


def _first(stacked):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked
  )
