"""Learning: losses, algorithms, scaling and the trainer; `execution` runs their updates."""
