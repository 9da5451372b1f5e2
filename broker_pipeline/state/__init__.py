"""What Redis keeps: jobs and their tokens, which media they need, who is there, who conducts."""
