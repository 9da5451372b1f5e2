"""From logits to tokens, for a whole batch at once and counted by seed and position."""
