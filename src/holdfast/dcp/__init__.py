"""torch DCP: its own calls on Holdfast's machinery, and its files."""
