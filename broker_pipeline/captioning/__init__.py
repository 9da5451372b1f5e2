"""Data sets in, captions and training-ready data sets out: what `broker-pipeline caption` and `Client` do."""
