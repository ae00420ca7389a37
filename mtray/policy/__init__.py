"""Networks: layers, the policy, the critic, acting in numpy, weights as they travel."""
