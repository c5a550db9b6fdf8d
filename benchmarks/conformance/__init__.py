"""Test vectors for the losses, and a runner for anybody's implementation: README.md."""
