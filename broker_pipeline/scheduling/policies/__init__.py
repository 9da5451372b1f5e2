"""Decisions around the scheduler: admission, retries, limits of prompts, sampling defaults."""
