"""The table: Holdfast and its peers, side by side, on the same states, with training going on."""
