"""What a run stands on: the machine's memory and limits, a Ray of its own or a cluster, and signals."""
