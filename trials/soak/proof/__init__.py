"""What is asked, what must come back, and the proof that it did."""
