"""Offline, on a CPU: a Hugging Face checkpoint becomes an artifact that any cut of the model can load."""
