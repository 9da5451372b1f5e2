"""OpenAI's API in front of the same jobs: shapes of requests and answers, and nothing else."""
