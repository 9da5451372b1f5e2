"""Files, and batches of the requests in them: state machines in Redis that any gateway carries on. Knows no HTTP."""
