"""What a run saves: written whole or not at all, read by resumed runs and by whoever loads the policy."""
