"""Pools of connections to Redis: behind Sentinel, encrypted."""
