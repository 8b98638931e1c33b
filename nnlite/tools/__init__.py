"""Tools to look into a model: are its gradients right, where does a bad value come from, where does the time go."""
