"""Layers that rest among layers that train: against all of them in a row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from satjax.model import resting

LAYERS, WIDTH, ROWS = 6, 8, 5
OWN = jnp.arange(1.0, LAYERS + 1)
# Runs of resting layers of every length, and none.
CHOICES = ['100101', '001010', '011111', '100000', '000001']


def layer(x, weights, own):
  hidden = jnp.tanh(x @ weights['matrix'].reshape(WIDTH, -1))
  return x + own * jnp.sin(hidden * weights['gain'])


RUN = layer


def make(dtype=np.float64):
  random = np.random.default_rng(0)
  weights = {
    'matrix': random.normal(size=(LAYERS, WIDTH, WIDTH)),
    'gain': random.normal(size=(LAYERS, WIDTH)),
  }
  x = random.normal(size=(ROWS, WIDTH))
  return jax.tree.map(lambda y: jnp.asarray(y, dtype), (x, weights))


def pick(weights, numbers):
  return jax.tree.map(lambda y: y[numbers], weights)


def one_by_one(x, weights, trains, through):
  for number in range(LAYERS):
    own = pick(weights, number)
    if trains[number]:
      x = layer(x, own, OWN[number])
    elif through:
      x = layer(x, jax.lax.stop_gradient(own), OWN[number])
    else:
      x += jax.lax.stop_gradient(layer(x, own, OWN[number]) - x)
  return jnp.sum(jnp.sin(x))


def among(x, weights, trains, through):
  (active,), (others,) = np.nonzero(trains), np.nonzero(~trains)
  before = [np.sum(others < number) for number in active]
  rest = resting.Resting(
    pick(weights, others), OWN[others], jnp.asarray(before, jnp.int32)
  )
  part = pick(weights, active)
  x = resting.run(RUN, x, part, OWN[active], rest, through=through)
  return jnp.sum(jnp.sin(x))


@pytest.mark.parametrize('through', [True, False])
@pytest.mark.parametrize('choice', CHOICES)
def test_loss_and_gradients_are_those_of_all_layers_in_a_row(choice, through):
  trains = np.array(list(choice)) == '1'
  with jax.enable_x64(True):
    x, weights = make()
    expected, found = (
      jax.value_and_grad(fn, argnums=(0, 1))(x, weights, trains, through)
      for fn in (one_by_one, among)
    )
    alone = jax.grad(among, argnums=1)(x, weights, trains, through)
    plain = among(x, weights, trains, through)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12),
    (expected, expected[1][1], expected[0]),
    (found, alone, plain),
  )
  for leaf in jax.tree.leaves(found[1][1]):
    assert not leaf[~trains].any()
    assert leaf[trains].any()


BACKWARDS = []


@jax.custom_vjp
def spy(x, number):
  return x


spy.defvjp(
  lambda x, number: (x, number),
  lambda number, dx: (
    jax.debug.callback(lambda n: BACKWARDS.append(int(n)), number) or dx,
    None,
  ),
)


@pytest.mark.parametrize(
  'argnums, through, expected',
  [
    ((0, 1), True, [6, 5, 4, 3, 2, 1]),
    ((0, 1), False, [5, 3]),
    # Where nothing below trains, nothing goes backwards there.
    ((1,), True, [6, 5, 4, 3]),
  ],
)
def test_which_layers_run_backwards(argnums, through, expected, monkeypatch):
  def watched(x, weights, own):
    return layer(spy(x, own), weights, own)

  trains = np.array([0, 0, 1, 0, 1, 0], bool)
  monkeypatch.setitem(globals(), 'RUN', watched)
  BACKWARDS.clear()
  grads = jax.grad(among, argnums=argnums)(*make(np.float32), trains, through)
  jax.block_until_ready(grads)
  jax.effects_barrier()
  assert expected == BACKWARDS


def test_one_program_serves_every_choice():
  x, weights = make(np.float32)
  traces = []

  @jax.jit
  def step(x, active, others, before):
    traces.append(1)
    rest = resting.Resting(others, OWN[:3], before)

    def loss(weights):
      run = resting.run(layer, x, weights, OWN[:3], rest, through=True)
      return jnp.sum(run)

    return jax.grad(loss)(active)

  for before in ([0, 1, 3], [3, 3, 3], [0, 0, 0]):
    halves = pick(weights, slice(0, 3)), pick(weights, slice(3, 6))
    step(x, *halves, jnp.asarray(before, jnp.int32))
  assert len(traces) == 1
