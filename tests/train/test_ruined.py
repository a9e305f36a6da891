"""A run that leaves out what it cannot do without is told what would do."""

import pytest

from satjax.train import loop
from tests.train import helpers

CUT = {
  'sparsity__head_rate': 0.5,
  'sparsity__channel_rate': 0.5,
  'sparsity__omitted_forward': 'skip',
  'train__num_steps': 8,
  'train__batch_size': 8,
  'train__eval_every': 0,
  'data__eval': (),
}


@pytest.mark.parametrize('most, count', [(-100.0, 1), (100.0, 0)])
def test_it_is_said_once_and_a_probe_is_named(
  most, count, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(loop, 'MOST_DAMAGE', most)
  loop.train(helpers.make_config(**CUT), tmp_path)
  said = [
    record.getMessage()
    for record in caplog.records
    if 'nats a token at once' in record.getMessage()
  ]
  assert len(said) == count
  for message in said:
    assert f'satjax probe --workdir={tmp_path} --saving=0.' in message
    assert '--seq_len=' in message and '--channel_multiple=' in message
