"""Which workers there are and how they do: the roster, and whom to ask for a prompt."""
