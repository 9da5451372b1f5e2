"""`bench conductor`: the conductor with stages that only answer."""
