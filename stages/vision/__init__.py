"""The vision worker: conversations in, tokens, positions and visual rows out."""
