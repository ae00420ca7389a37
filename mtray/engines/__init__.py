"""Simulators behind one interface: each is imported by one file."""
