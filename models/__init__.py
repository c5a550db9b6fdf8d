"""Hugging Face models: loading them, and running them on token-tree batches."""
