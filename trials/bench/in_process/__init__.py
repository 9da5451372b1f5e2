"""The model in one process, without broker: the baseline."""
