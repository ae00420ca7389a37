"""Simulators behind one small interface: one file per simulator, the only place that imports it."""
