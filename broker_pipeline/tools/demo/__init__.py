"""The demo: a whole pipeline in one command."""
