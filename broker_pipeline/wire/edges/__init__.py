"""Edges: ways for payloads from one worker to another beside NATS, which goes on carrying all metadata."""
