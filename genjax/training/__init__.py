"""Training: steps from losses, the loop, data sets, checkpoints and the run directory."""
