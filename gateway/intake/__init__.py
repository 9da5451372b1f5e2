"""From a request's bytes to a submission: bodies, pictures, URLs, limits, and the checked draft of a job."""
