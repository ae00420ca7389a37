"""A run's directory: its files, checkpoints, metrics and where they go."""
