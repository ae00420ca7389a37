"""The Ray actors, and how they talk to each other."""
