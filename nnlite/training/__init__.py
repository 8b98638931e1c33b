"""Training: the loop over epochs, checkpoints, callbacks and progress."""
