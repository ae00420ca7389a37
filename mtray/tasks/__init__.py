"""Tasks: names, what travels to the process that steps them, and their TorchRL environments."""
