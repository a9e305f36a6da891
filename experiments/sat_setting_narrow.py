"""A narrower model: is there less to leave out?

Claim     SAT pays more, or less, where a model is narrow.
Source    ours; the search for a setting in which SAT pays.
Runs      plain and exact forward passes at half the width, heads and channels.
Cost      cpu: about 6 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 18 minutes of an H200, paper: 406 hours of one.
Command   satjax experiment experiments/sat_setting_narrow.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_setting_narrow.md
"""

from experiments import scenarios

TITLE = 'A narrower model'
PAPER = None
CLAIMS = (scenarios.WORTHWHILE,)


def scenario(scale):
  return scenarios.cpt(scale, 'narrow', width=0.5)


def sweep(add, scenario):
  del scenario
  scenarios.add_methods(add)
