"""The process of a run: signals that ask it to stop, and the other ranks."""
