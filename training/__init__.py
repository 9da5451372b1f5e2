"""Training of the tiny captioner that ships with the package; see docs/demo_model.md."""
