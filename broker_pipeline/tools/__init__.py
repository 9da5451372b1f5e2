"""What people type: everything around the pipeline that is not part of it."""
