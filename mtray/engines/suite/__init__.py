"""dm_control's domains over a batch: a file per domain, over the views of `base`."""
