"""What the files of an artifact hold, down to the last byte, and which of them a host needs. No torch."""
