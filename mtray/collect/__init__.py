"""Collecting: what steps simulators with a policy, and evaluates one."""
