"""What is on disk: rows, metadata, files, versions, and one commit."""
