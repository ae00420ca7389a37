"""Tasks: their names, how they travel to other processes, and their TorchRL environments."""
