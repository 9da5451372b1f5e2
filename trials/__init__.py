"""Above everything: what starts whole pipelines to measure them or to break them."""
