"""Twice the width: does what a wider model promises go on?

Claim     SAT pays where a model is wide for its text.
Source    ours; the search for a setting in which SAT pays.
Runs      as sat_setting_wide, at twice the usual width.
Cost      cpu: about 35 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 24 minutes of an H200; not at paper.
Command   satjax experiment experiments/sat_setting_wider.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_setting_wider.md
"""

from experiments import arms, scenarios

TITLE = 'A model twice as wide'
PAPER = None
CLAIMS = arms.setting()


def scenario(scale):
  steps = 1 / 3 if scale == 'gpu' else 1 / 2  # as many as take 25 minutes
  return scenarios.cpt(scale, 'wider', width=2, steps=steps, extra_rate=1 / 2)


sweep = arms.add_nearest
