"""Which structured outputs are accepted: one rule, which gateways refuse by and conductors translate by."""
