"""The importer of torch: capture, stage, load, Checkpointer."""
