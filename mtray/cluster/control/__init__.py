"""Control: what the parts of a run are asked for, and when. Events in, commands out; plain Python."""
