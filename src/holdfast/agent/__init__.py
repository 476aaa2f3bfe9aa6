"""The node process: arena, executor of lifecycle's actions, HTTP service. Without torch."""
