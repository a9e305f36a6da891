"""`python -m satjax COMMAND`."""

from satjax import cli

cli.entry()
