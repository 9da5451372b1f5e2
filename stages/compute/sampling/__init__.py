"""From logits to tokens, for a whole batch at once and counted by seed and position.

A logit row `[V]` is what one token is sampled from. Tensors here hold several, as `[r, V]` or, of a group, `[n, V]`.
"""
