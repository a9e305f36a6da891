"""When to grow, as papers advise, and how that went in our runs."""

import json
import math

import pytest

from satjax import errors
from satjax.growth import guidelines
from satjax.lab.plan import growth


@pytest.mark.parametrize('bad', [0, -1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('name', ['num_params', 'tokens', 'factor'])
def test_bad_numbers_are_refused(name, bad):
  good = {'num_params': 1e9, 'tokens': 1e11, 'factor': 4.0}
  with pytest.raises(errors.ConfigError, match=f'{name} {bad}: must be '):
    growth.plan(**{**good, name: bad})


@pytest.mark.parametrize('factor', [2, 3.5, 4, 24])
@pytest.mark.parametrize('num_params, tokens', [(7e9, 3e11), (1e7, 1e9)])
def test_a_plan_is_that_of_the_guidelines(num_params, tokens, factor, recwarn):
  found = growth.plan(num_params, tokens, factor)
  assert not recwarn.list  # what there is to say is in the notes
  assert any('a factor of 4' in n for n in found.notes) == (factor != 4)
  flops = 6 * num_params * tokens
  when, notes = guidelines.timing_and_notes(num_params, flops, tokens)
  assert found.base_tokens == when and set(notes) <= {*found.notes}
  text = growth.render(found)
  assert text.count('Warning: ') == len(found.notes)
  for said in json.loads(growth.PUBLISHED.read_text()):
    assert said['verdict'] in text and said['tested_by'] in text
