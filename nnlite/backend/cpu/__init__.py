"""The CPU: NumPy, shards on threads, one BLAS thread in each."""
