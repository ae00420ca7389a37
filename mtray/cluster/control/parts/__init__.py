"""The parts of a run as control sees them: their processes' lives, calls and deadlines, whatever they work on."""
