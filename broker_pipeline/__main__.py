"""Lets `python -m broker_pipeline` do what the command `broker-pipeline` does."""

from broker_pipeline.cli import run

run()
