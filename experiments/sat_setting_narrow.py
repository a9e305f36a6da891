"""A narrower model: is there less to leave out?

Claim     SAT pays more, or less, where a model is narrow.
Source    ours; the search for a setting in which SAT pays.
Runs      at half the width, heads and channels, the recipes of sat_search that
          came nearest.
Cost      cpu: about 5 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 4 minutes of an H200; not at paper.
Command   satjax experiment experiments/sat_setting_narrow.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_setting_narrow.md
"""

from experiments import arms, scenarios

TITLE = 'A narrower model'
PAPER = None
CLAIMS = arms.setting()


def scenario(scale):
  return scenarios.cpt(scale, 'narrow', width=0.5)


sweep = arms.add_nearest
