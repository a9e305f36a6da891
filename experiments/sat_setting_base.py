"""A base that has hardly trained.

Claim     SAT pays where the base has hardly trained.
Source    ours; the search for a setting in which SAT pays.
Runs      from a base of an eighth of the steps, the recipes of sat_search that
          came nearest.
Cost      cpu: about 17 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 19 minutes of an H200; not at paper.
Command   satjax experiment experiments/sat_setting_base.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_setting_base.md
"""

from experiments import arms, scenarios

TITLE = 'A base that has hardly trained'
PAPER = None
CLAIMS = arms.setting()


def scenario(scale):
  return scenarios.cpt(scale, 'short-base', base_steps=1 / 8, extra_rate=8)


sweep = arms.add_nearest
