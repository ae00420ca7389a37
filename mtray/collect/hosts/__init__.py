"""Hosts: several tasks' simulators stepped together, in the calling process or in a process each."""
