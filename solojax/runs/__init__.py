"""Training runs: a config and a work directory in, checkpoints and metrics out."""
