"""An artifact's weights on their way from files into memory of this process, checked on the way."""
