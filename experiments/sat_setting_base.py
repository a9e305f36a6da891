"""A base that has hardly trained.

Claim     SAT pays where the base is not over-trained, or where it is.
Source    ours; the search for a setting in which SAT pays.
Runs      plain and exact forward passes from a base of an eighth of the steps.
Cost      cpu: about 23 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 18 minutes of an H200, paper: 406 hours of one.
Command   satjax experiment experiments/sat_setting_base.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_setting_base.md
"""

from experiments import scenarios

TITLE = 'A base that has hardly trained'
PAPER = None
CLAIMS = (scenarios.WORTHWHILE,)


def scenario(scale):
  return scenarios.cpt(scale, 'short-base', base_steps=1 / 8)


def sweep(add, scenario):
  del scenario
  scenarios.add_methods(add)
