"""Rollouts: what the policy says to a prompt (`sample`) and what that is worth (`score`)."""
