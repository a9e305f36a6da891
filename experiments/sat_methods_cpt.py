"""Every method of configs/methods.py: continual pre-training.

Claim     leaving out heads, channels or layers, in one way or another, reaches
          a lower loss than dense training in the same measured time.
Source    those of docs/methods.md, one for each method.
Runs      source code of Python: all presets; a random choice, LoRA; dense at
          equal steps, time and FLOPs by its frontier. At scale llm what is
          forgotten, too, on documentation, and other seeds of the best five.
Cost      llm: about six hours on two cores; cpu: about an hour; both are
          resumed by the same command.
Command   satjax experiment experiments/sat_methods_cpt.py --scale=llm \\
            --workdir=runs/experiments
Result    experiments/results/sat_methods_cpt.md
"""

from experiments import arms, scenarios

TITLE = 'Methods: continual pre-training'
ANSWERS = 'Continual pre-training'
PAPER = None
CLAIMS = arms.presets()
sweep = arms.add_presets


def scenario(scale):
  return scenarios.with_room_for_layers(scenarios.cpt(scale))
