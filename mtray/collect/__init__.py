"""Collecting: simulators stepped with a policy, and the evaluation of a policy."""
