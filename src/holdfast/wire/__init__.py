"""Trainer <-> agent: pages, messages, client."""
