"""What every process of broker-pipeline has to do with its system: signals, and the streams that it was given."""
