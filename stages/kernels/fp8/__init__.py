"""Products with weights in FP8: by codes alone, or of rows in FP8 as well."""
