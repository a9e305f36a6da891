"""Units left out from scratch: 80 tokens a parameter.

Claim     dropping layers by a schedule over the run gives a lower loss at fewer
          FLOPs than dense training.
Source    Don't Drop Dropout, ICML 2026; progressive layer dropping, arXiv
          2010.13369; SAT's ladder.
Runs      layers dropped at a constant, a falling and a rising rate, alike or by
          depth; a dense forward pass over them; SAT on heads and channels.
Cost      cpu: about six hours on two cores; not at paper.
Command   satjax experiment experiments/sat_scratch_80.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_scratch_80.md
"""

import functools

from experiments import arms, scenarios

TITLE = 'Units left out from scratch: 80 tokens a parameter'
PAPER = None
CLAIMS = arms.dropped()
scenario = functools.partial(scenarios.scratch, tokens=80, family='sat')
sweep = arms.add_dropped
