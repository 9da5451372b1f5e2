"""Guesses at what a session says next, which stages verify: where they come from, and when they pay."""
