"""`broker-pipeline trace`: reads the profiles of all processes, joins and sums them up."""
