"""Profiles: what each process did when, as Chrome traces, and what becomes of them once they are joined."""
