"""The computation of a stage, and of the vision tower: synchronous, without broker or clock."""
