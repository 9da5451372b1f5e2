"""Keys and values of a stage's sessions: tensors, regions, how much fits."""
