"""NATS as a link: one connection, its socket, its messages."""
