"""The commands `stage` and `vision`, and a process that is both."""
