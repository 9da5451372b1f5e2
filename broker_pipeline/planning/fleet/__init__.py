"""What goes where on several unlike hosts, and what would make it go faster. Pure."""
