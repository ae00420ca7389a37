"""Networks: layers, policy, critic, acting in numpy, and snapshots of weights."""
