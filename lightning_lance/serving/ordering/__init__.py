"""The order of windows: a pure function of the content of the stores, the seed and the position."""
