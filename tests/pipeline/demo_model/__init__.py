"""A package, so that the pipeline that these files share ends with the last of them."""
