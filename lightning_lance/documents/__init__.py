"""The batch of documents that flows through a build, and all that is decided about one document."""
