"""From windows to batches."""
