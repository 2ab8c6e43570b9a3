"""Where the units of a build run."""
