"""Decisions around the scheduler: admission, retries, who is alive, limits of prompts, sampling defaults."""
