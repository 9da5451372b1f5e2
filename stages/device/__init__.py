"""The device itself: which one, its times, copies between it and the host."""
