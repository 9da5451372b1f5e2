"""From logits to tokens: the scan that every row of logits gets, and draws."""
