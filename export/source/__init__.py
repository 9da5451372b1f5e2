"""Where weights come from: local directories and the hub."""
