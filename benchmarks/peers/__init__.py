"""Whom mtray is compared with, and what they need to run."""
