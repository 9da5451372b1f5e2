"""Rows as tables: columns, Parquet, and tables that are texts."""
