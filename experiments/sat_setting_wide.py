"""A wider model: does more redundancy help SAT?

Claim     SAT pays where a model is wide for its text.
Source    ours; the search for a setting in which SAT pays.
Runs      at 1.5 times the width, the recipes of sat_search that came nearest.
Cost      cpu: about 21 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 20 minutes of an H200; not at paper.
Command   satjax experiment experiments/sat_setting_wide.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_setting_wide.md
"""

from experiments import arms, scenarios

TITLE = 'A wider model'
PAPER = None
CLAIMS = arms.setting()


def scenario(scale):
  return scenarios.cpt(scale, 'wide', width=1.5, steps=0.5, extra_rate=1 / 2)


sweep = arms.add_nearest
