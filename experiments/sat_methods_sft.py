"""Every method of configs/methods.py: supervised fine-tuning.

Claim     leaving out heads, channels or layers, in one way or another, reaches
          a lower loss than dense training in the same measured time.
Source    those of docs/methods.md, one for each method.
Runs      all presets; a random choice, LoRA; dense at equal steps, time and
          FLOPs by its frontier. At scale llm what is forgotten, too, on source
          code, and other seeds of the best five. Of signatures answered by
          docstrings; the result is of GSM8K (Cobbe et al., 2021), whose
          train.jsonl --data names.
Cost      llm: about six hours on two cores; cpu: about an hour; both are
          resumed by the same command.
Command   satjax experiment experiments/sat_methods_sft.py --scale=llm \\
            --workdir=runs/experiments --data=jsonl:gsm8k/train.jsonl
Result    experiments/results/sat_methods_sft.md
"""

from experiments import arms, scenarios

TITLE = 'Methods: supervised fine-tuning'
ANSWERS = 'Fine-tuning'
PAPER = None
CLAIMS = arms.presets()
sweep = arms.add_presets


def scenario(scale):
  return scenarios.with_room_for_layers(scenarios.sft(scale))
