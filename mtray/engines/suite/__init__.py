"""dm_control's domains over a batch of simulations: one file per domain."""
