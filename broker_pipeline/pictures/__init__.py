"""Which pictures are accepted: one rule, which vision workers announce and decode by and gateways keep to."""
