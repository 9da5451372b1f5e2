"""The pipeline under test, host by host, and the faults that befall it."""
