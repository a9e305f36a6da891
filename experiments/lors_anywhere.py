"""LORS around a plain Flax and optax loop, on a model that is not satjax's.

A small network learns two spirals while half of its hidden neurons rest, and
ends dense. What is added to an ordinary loop: `units`, which says where the
neurons are; `satjax.lors` around the optimizer; and the mask on the parameters
of the forward pass.

    python experiments/lors_anywhere.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import satjax

STEPS = 600
model = nn.Sequential([nn.Dense(64), nn.gelu, nn.Dense(1)])
turn = jnp.linspace(0.5, 3, 100)
spiral = jnp.stack([turn * jnp.cos(3 * turn), turn * jnp.sin(3 * turn)], 1)
x, y = (
  jnp.concatenate([spiral, -spiral]),
  jnp.repeat(jnp.array([0.0, 1.0]), 100),
)

# Axis 1 of the first kernel and axis 0 of the second number the hidden neurons.
first, second = 'params/layers_0/kernel', 'params/layers_2/kernel'
units = {'hidden': {first: (1,), 'params/layers_0/bias': (0,), second: (0,)}}
ladder = satjax.Ladder(rate=0.5, split=2 / 3, rungs=4, num_steps=STEPS)
tx = satjax.lors(optax.adam(1e-2), ladder, units=units, refresh_every=10)


@jax.jit
def step(params, state):
  def loss_fn(params):
    active = satjax.apply_mask(params, state.mask)
    logits = model.apply(active, x)[:, 0]
    return optax.sigmoid_binary_cross_entropy(logits, y).mean()

  loss, grads = jax.value_and_grad(loss_fn)(params)
  updates, state = tx.update(grads, state, params)
  return optax.apply_updates(params, updates), state, loss


params = model.init(jax.random.key(0), x)
state = tx.init(params)
for number in range(STEPS):
  if number % 100 == 0:
    kept = int(state.mask['params']['layers_2']['kernel'].sum())
    print(f'step {number}: {kept} of 64 hidden neurons take part')
  params, state, loss = step(params, state)
correct = ((model.apply(params, x)[:, 0] > 0) == y).mean()
print(f'loss {loss:.4f}, {correct:.0%} of the points are right')
