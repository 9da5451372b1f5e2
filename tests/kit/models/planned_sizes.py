"""Sizes of the published models as the planner sees them, from artifacts of random weights."""

from trials.hosts.named_model import sizes_of_shape as sizes_of

__all__ = ["sizes_of"]
