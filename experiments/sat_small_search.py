"""Small fine-tuning sets: which rate, selection and ladder do best there?

Claim     with another rate, selection or ladder than in sat_small_data SAT ends
          below dense training for the same time.
Source    ours; the search for a setting in which SAT pays.
Runs      few pairs, about seven epochs. Plain and exact forward passes with the
          neurons of the largest scores; exact ones without any ladder, and with
          hardly any neuron that learns.
Cost      cpu: about 38 minutes on two cores, less where runs are shared;
          by FLOPs, gpu: 2 minutes of an H200, paper: an hour of one.
Command   satjax experiment experiments/sat_small_search.py --scale=cpu \\
            --workdir=runs/experiments --jobs=2
Result    experiments/results/sat_small_search.md
"""

from experiments import arms, scenarios

TITLE = 'Small fine-tuning sets: the search'
PAPER = None
_TOP_K = {'sparsity.selection': 'top_k'}
METHODS = {
  'skip, 0.5, top_k': scenarios.SAT | _TOP_K,
  'exact, 0.5, top_k': scenarios.SAT | _TOP_K | scenarios.EXACT,
  'exact, 0.75, constant': scenarios.rates(0.75)
  | scenarios.EXACT
  | {'sparsity.split': 1.0},
  'exact, 0.875': scenarios.rates(0.875) | scenarios.EXACT,
}
CLAIMS = arms.small_data(METHODS)
scenario = scenarios.small_data


def sweep(add, scenario):
  del scenario
  arms.add_methods(add, METHODS)
