"""Our own API under `/v1`: jobs and their events, workers, status."""
