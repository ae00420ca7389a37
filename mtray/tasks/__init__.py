"""Tasks: the registry of names, picklable descriptions, and TorchRL environments."""
