"""Text for people: numbers as they are read, secrets left out, control characters escaped."""
