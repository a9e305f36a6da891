"""Continual pre-training against a sceptic's baselines.

Claim     in continual pre-training SAT reaches the loss of dense training in
          less time.
Source    SAT (Ma et al., 2024), abstract: +45 % throughput in CPT.
Runs      SAT with plain omission, with mean and with an exact forward pass; a
          random choice, a base pruned once and for all, LoRA; dense at equal
          steps, time and FLOPs by its frontier.
Cost      cpu: about 18 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 15 minutes of an H200, paper: 1,758 hours of one.
Command   satjax experiment experiments/sat_cpt.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_cpt.md
"""

from experiments import arms, scenarios

TITLE = 'Continual pre-training'
PAPER = None
CLAIMS = arms.headline('45 % more throughput', 1.45)
scenario = scenarios.cpt
sweep = arms.add_headline
