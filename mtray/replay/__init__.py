"""Replay: a dense ring per task, and the pacing of updates to frames."""
