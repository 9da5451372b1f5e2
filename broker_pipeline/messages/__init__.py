"""Everything that parts of broker-pipeline say to each other: one file a kind of message."""
