"""Checkpoints on tiers: catalog, commit, prune, verify."""
