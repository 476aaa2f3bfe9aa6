"""Two small state machines, node and run: events in, actions out. No clock, I/O, threads or randomness."""
