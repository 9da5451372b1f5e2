"""From a request's bytes to a checked plan of a job: bodies, pictures, URLs, limits."""
