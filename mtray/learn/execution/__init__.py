"""Execution of updates: recording and replay, number of threads, failures."""
