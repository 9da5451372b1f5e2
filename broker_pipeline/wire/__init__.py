"""How bytes travel: the codec, and messages with tensors over NATS."""
