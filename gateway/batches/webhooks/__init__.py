"""Who is told that a batch has ended, and how."""
