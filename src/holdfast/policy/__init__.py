"""Decisions: schedule, retention, nearest source, deadline. Pure."""
