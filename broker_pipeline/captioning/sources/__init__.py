"""Where pictures come from: ordered, countable streams of items with stable names."""
