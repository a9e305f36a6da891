"""`cpt` on other schedules of the omission rate: the paper's ladder, and what
there is to compare it with.

    satjax plan --config=configs/schedules.py:reversed
    satjax train --config=configs/schedules.py:drop --workdir=runs/drop
"""

from configs import cpt

SCHEDULES = {
  'ladder': {},  # 2/3 of the run at the full rate, then 4 rungs down to dense
  'constant': {'split': 1.0},  # never dense
  'drop': {'rungs': 1},  # dense at once
  'reversed': {'shape': 'reversed'},  # dense first, up the rungs, then constant
  'warm_start': {'warm_start': 0.05},  # 5 % dense, then the ladder
  # A little less every step: every rate would be a program of its own, so the
  # neurons are masked; this shows what rungs cost in loss, not in time.
  'linear': {'shape': 'linear', 'execution': 'masked'},
}


def get_config(schedule='ladder'):
  config = cpt.get_config()
  if schedule not in SCHEDULES:
    raise ValueError(f'{schedule!r} is none of {", ".join(SCHEDULES)}')
  config.sparsity.update(SCHEDULES[schedule])
  return config
