"""From a source to a token store."""
