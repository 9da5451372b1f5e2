"""A whole pipeline on one machine: servers, services, and what keeps them running."""
