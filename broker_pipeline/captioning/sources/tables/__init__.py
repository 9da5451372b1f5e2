"""Tables as sources: Arrow, Parquet, CSV, JSON Lines, and saved data sets."""
