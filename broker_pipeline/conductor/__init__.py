"""The conductor: it drives one pipeline, and puts the scheduler's decisions into effect."""
