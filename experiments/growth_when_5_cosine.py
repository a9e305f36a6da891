"""When to grow, and from how few layers: 5 tokens a parameter, cosine.

Claim     stacking early by four; at most by two, and only on few tokens: each
          paper says one.
Source    Du et al., 2024; arXiv 2605.13405.
Runs      a hop after 10, 30, 50 or 80 % of the tokens, from 1, 2 or 4 of 8
          layers, against scratch at equal FLOPs and at equal time, and against
          the shallow model that never grows.
Cost      cpu: about half an hour on two cores; not at paper.
Command   satjax experiment experiments/growth_when_5_cosine.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/growth_when_5_cosine.md
"""

import functools

from experiments import arms, scenarios

TITLE = 'When to grow: 5 tokens a parameter, cosine'
PAPER = None
CLAIMS = arms.when('cosine')
scenario = functools.partial(scenarios.scratch, tokens=5, schedule='cosine')
sweep = arms.add_when
