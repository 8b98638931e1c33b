"""Training: epochs of batches, what is kept of them, and what is shown."""
