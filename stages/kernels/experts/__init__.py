"""Mixture of experts: routing, sorting, and products by expert, for few tokens and for many."""
