"""Learning: losses, algorithms, how an update runs, and the trainer that feeds it."""
