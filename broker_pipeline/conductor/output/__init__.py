"""What becomes of sampled tokens: text, an end, commits, events."""
