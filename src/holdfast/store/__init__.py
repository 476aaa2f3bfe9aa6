"""Checkpoints on tiers: claimed, flushed, committed, listed, fetched, verified, pruned. One verb per file."""
