"""`bench tower`: the vision tower by itself, as graphs and launched kernel by kernel."""
