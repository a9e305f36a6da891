"""Supervised fine-tuning against a sceptic's baselines.

Claim     in fine-tuning SAT reaches the loss of dense training in less time.
Source    SAT (Ma et al., 2024), abstract: -38 % time in SFT.
Runs      SAT with plain omission, with mean and with an exact forward pass; a
          random choice, a base pruned once and for all, LoRA; dense at equal
          steps, time and FLOPs by its frontier.
Cost      cpu: about 34 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 21 minutes of an H200, paper: 5 hours of one.
Command   satjax experiment experiments/sat_sft.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_sft.md
"""

from experiments import arms, scenarios

TITLE = 'Supervised fine-tuning'
PAPER = None
CLAIMS = arms.headline('38 % less time', 1 / (1 - 0.38))
scenario = scenarios.sft
sweep = arms.add_headline
