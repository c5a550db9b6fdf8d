"""Bugs that shipped elsewhere, as patches of this project's source that a test must reject."""
