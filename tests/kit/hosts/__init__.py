"""Several hosts as network namespaces, on which services run as the files in compose/ say."""
