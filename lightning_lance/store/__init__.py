"""A version of a token store, opened for reading."""
