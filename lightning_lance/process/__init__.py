"""This process and its neighbours: locks, status files, memory, prefetch, ranks."""
