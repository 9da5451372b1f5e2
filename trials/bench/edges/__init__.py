"""`bench edges`: one payload from process to process, by every edge."""
