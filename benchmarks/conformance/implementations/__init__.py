"""What the runner finds by name: ours, an example, and one adapter for each peer."""
