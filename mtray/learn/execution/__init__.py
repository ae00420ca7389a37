"""How an update runs: recorded and replayed, with how many threads, and how it fails."""
