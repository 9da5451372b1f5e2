"""What is asked about an item: templates, presets, alternatives, several questions, chains."""
