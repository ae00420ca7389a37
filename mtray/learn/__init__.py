"""Learning: losses, algorithms, scaling, and the trainer that feeds them; `execution` runs an update."""
