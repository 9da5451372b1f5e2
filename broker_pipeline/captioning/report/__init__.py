"""What a run came to, as one page for a browser."""
