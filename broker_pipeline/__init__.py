"""The core of broker-pipeline: contract, transport, state, scheduling. Imports no torch."""

__version__ = "0.1.0"
