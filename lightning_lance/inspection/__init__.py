"""Looking at stores, batches and runs."""
