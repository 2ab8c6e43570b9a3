"""The sample GPT and its training script, importable as `lightning_lance.examples`."""
