"""`broker-pipeline fetch`: brings the files of an artifact that a host needs, from a directory or over HTTP."""
