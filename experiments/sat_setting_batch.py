"""A larger batch: does SAT profit from less noise?

Claim     SAT pays where the batch is large, and steps are few for its FLOPs.
Source    ours; the search for a setting in which SAT pays.
Runs      at four times the rows a step, the recipes of sat_search that came
          nearest.
Cost      cpu: about 20 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 19 minutes of an H200, paper: 346 hours of one.
Command   satjax experiment experiments/sat_setting_batch.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_setting_batch.md
"""

from experiments import arms, scenarios

TITLE = 'A larger batch'
PAPER = None
CLAIMS = arms.setting()


def scenario(scale):
  return scenarios.cpt(scale, 'batch', batch=4, steps=0.25, extra_rate=8)


sweep = arms.add_nearest
