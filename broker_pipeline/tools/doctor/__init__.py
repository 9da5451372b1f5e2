"""`broker-pipeline doctor`: what a host needs, looked at all at once.

Each check gathers facts (which may hang, fail, or be had from nobody) and judges them (which is pure).
"""
