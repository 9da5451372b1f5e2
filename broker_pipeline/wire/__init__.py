"""How messages travel: the codec, what is said and heard in types, and the links that carry it."""
