"""What operators ask of a running pipeline: its state, its failed jobs, the drain of a worker."""
