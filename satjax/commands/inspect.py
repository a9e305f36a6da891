"""satjax inspect."""

from typing import Any

from satjax.commands import shared

SUMMARY = (
  'say what a Hugging Face directory holds, and verify its checksums, headers'
  ' and shapes'
)
OPTIONS = {
  '--model': shared.value('MODEL_DIR', 'Hugging Face directory', required=True)
}


def run(options: Any) -> None:
  from pathlib import Path

  from satjax.interop import inspection, weights

  text, problems = inspection.inspect(options.model)
  print(text)
  weights.refuse(Path(options.model), problems)
