"""The HTTP side: takes jobs, answers for them, streams their tokens. Any number of replicas; no torch."""
