"""The batch of documents that flows through a build, and every decision about a single document."""
