"""Rollouts for PPO: not here yet."""
