"""`bench pipeline`: a whole system, pictures in, captions out."""
