"""Profiles as they are recorded: what each process did when, as Chrome traces."""
