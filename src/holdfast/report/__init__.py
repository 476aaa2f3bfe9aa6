"""Tables, plots and pages for people. Knows nothing of what it shows."""
