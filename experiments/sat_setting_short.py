"""A shorter run: does SAT pay while the loss still falls fast?

Claim     SAT pays in a short run.
Source    ours; the wider models of sat_setting_wide run for as few steps.
Runs      for half of the steps, the recipes of sat_search that came nearest.
Cost      cpu: about 12 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 10 minutes of an H200, paper: 173 hours of one.
Command   satjax experiment experiments/sat_setting_short.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_setting_short.md
"""

from experiments import arms, scenarios

TITLE = 'A shorter run'
PAPER = None
CLAIMS = arms.setting()


def scenario(scale):
  return scenarios.cpt(scale, 'short', steps=0.5, extra_rate=1 / 2)


sweep = arms.add_nearest
