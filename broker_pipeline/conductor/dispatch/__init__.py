"""Plan, send, complete: microbatches on their way to the stages and back."""
