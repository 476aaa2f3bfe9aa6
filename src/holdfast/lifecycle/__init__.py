"""Two state machines, node and run: step(state, event) -> actions. No clock, no I/O, no threads."""
