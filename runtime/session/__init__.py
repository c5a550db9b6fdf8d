"""A run from its beginning to its end, around the steps: begin or go on, evaluate, save, finish."""
