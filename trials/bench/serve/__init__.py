"""`bench serve`: an OpenAI-compatible server under a given rate of requests."""
