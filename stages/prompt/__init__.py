"""From a conversation with pictures to token ids and patch rows."""
