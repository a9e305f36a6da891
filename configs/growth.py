"""Model growth on two cores: every operator, and the run from scratch.

All names end with the same model: 8 layers, 8.6M parameters; the base has 2 of
them, or half of the width. It trains on a tenth of the tokens, then grows by 4
in depth or 2 in width; optimizer and learning rate start anew, as in Du et al.
(2024).

    satjax plan --config=configs/growth.py:stack
    satjax train --config=configs/growth.py:stack --workdir=runs/stack
    satjax train --config=configs/growth.py:scratch --workdir=runs/scratch
    satjax report runs/stack runs/scratch
"""

from configs import base

STEPS = 400
_HOP = STEPS // 10  # the step of growth
_DEPTH, _BASE = 8, 2  # layers after and before
_WIDE = {'embed_dim': 256, 'num_heads': 8, 'num_kv_heads': 8, 'mlp_dim': 1024}
_UNEVEN = {'split': 'uneven'}
_NARROW = {key: size // 2 for key, size in _WIDE.items()}


def _midas(tokens):
  """2 layers more in each of four stages, whose lengths rise as 1, 2, 3, 4."""
  return tuple((_HOP * n * tokens, 'midas', _BASE) for n in (1, 3, 6))


# By name: sizes of the base, and the hops of a run whose steps have so many
# tokens.
GROWTH = {
  'scratch': ({'num_layers': _DEPTH}, lambda t: ()),
  'stack': ({}, lambda t: ((_HOP * t, 'stack', 4),)),
  # From half of the layers, and rows half as long: what saved most time in
  # experiments/growth_stack_up.py.
  'stack_up': (
    {'num_layers': _DEPTH // 2},
    lambda t: ((4 * _HOP * t, 'stack', 2), (6 * _HOP * t, 'length', 2)),
  ),
  'interpolate': ({}, lambda t: ((_HOP * t, 'interpolate', 4),)),
  'zero': ({}, lambda t: ((_HOP * t, 'zero', 4),)),
  'random': (
    {},
    lambda t: ((_HOP * t, 'random', {'factor': 4, 'ramp_tokens': _HOP * t}),),
  ),
  'learn': (
    {},
    lambda t: ((_HOP * t, 'learn', {'factor': 4, 'steps': 20}),),
  ),
  'noise': (
    {},
    lambda t: ((_HOP * t, 'stack', {'factor': 4, 'noise': 0.2}),),
  ),
  # Double twice, as progressive stacking does; or two layers at a time.
  'gradual': (
    {},
    lambda t: ((_HOP * t, 'stack', 2), (2 * _HOP * t, 'stack', 2)),
  ),
  'midas': ({}, _midas),
  # Old layers stand still for a while (MSLT), or to the end (LLaMA-Pro).
  'mslt': (
    {},
    lambda t: ((_HOP * t, 'stack', 4, {'freeze_tokens': 2 * _HOP * t}),),
  ),
  'llama_pro': (
    {'num_layers': 4},
    lambda t: (
      (_HOP * t, 'llama_pro', 1, {'freeze_tokens': 10**12, 'trains': 'new'}),
    ),
  ),
  'direct': (_NARROW, lambda t: ((_HOP * t, 'direct', {**_WIDE, **_UNEVEN}),)),
  'aki': (_NARROW, lambda t: ((_HOP * t, 'aki', _WIDE),)),
  'zero_width': (_NARROW, lambda t: ((_HOP * t, 'zero', _WIDE),)),
  'random_width': (
    _NARROW,
    lambda t: ((_HOP * t, 'random', {**_WIDE, 'ramp_tokens': _HOP * t}),),
  ),
  'learn_width': (
    _NARROW,
    lambda t: ((_HOP * t, 'learn', {**_WIDE, 'steps': 20}),),
  ),
  # Depth, width and length at once (CompoundGrow).
  'compound': (
    _NARROW,
    lambda t: (
      (
        _HOP * t,
        (('direct', {**_WIDE, **_UNEVEN}), ('stack', 4), ('length', 2)),
      ),
    ),
  ),
}


def get_config(name='stack'):
  config = base.get_config()
  if name not in GROWTH:
    raise ValueError(f'{name!r} is none of {", ".join(GROWTH)}')
  sizes, hops = GROWTH[name]
  config.model.num_layers = _BASE
  config.model.mlp_dim = 1024
  config.model.scan = False
  config.model.update(sizes)
  config.data.eval = ('stdlib:docs', 'stdlib:code')
  config.train.num_steps = STEPS
  config.train.log_every = 5
  config.train.eval_every = 0
  config.train.checkpoint_every = 100
  config.optimizer.peak_lr = 2e-3
  config.optimizer.end_lr = 2e-4
  config.optimizer.warmup_steps = 0.075
  tokens = config.train.batch_size * config.data.seq_len
  config.growth.hops = hops(tokens)
  config.growth.opt_state = 'reset'
  config.growth.learning_rate = 'restart'
  if name == 'stack_up':
    config.data.seq_len //= 2
    config.train.batch_size *= 2
    config.growth.opt_state = 'grow'
    config.growth.learning_rate = 'continue'
  return config
