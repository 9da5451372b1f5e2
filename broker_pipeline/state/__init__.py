"""What Redis keeps: jobs and their tokens, who is there, who conducts."""
