"""Checkpoints as files of others: what cannot be expressed there is refused before anything is written."""
