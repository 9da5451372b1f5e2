"""The decoder in plain torch: on CPUs, and as the reference of what is fused."""
