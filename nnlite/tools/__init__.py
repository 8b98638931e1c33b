"""Tools to inspect a model: check its gradients, locate a bad value, profile its passes."""
