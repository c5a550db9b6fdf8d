"""Rollouts: responses sampled from the policy, their scores, and PPO's steps over them."""
