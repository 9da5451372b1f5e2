"""The one job service under every API, and what belongs to it: storage, progress, retries, housekeeping."""
