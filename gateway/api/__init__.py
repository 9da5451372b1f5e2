"""HTTP's side of the gateway: routes, shapes of answers, errors as status codes."""
