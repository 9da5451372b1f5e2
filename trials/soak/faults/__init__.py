"""The faults that befall a pipeline under test: when, to whom, how they are done and undone."""
