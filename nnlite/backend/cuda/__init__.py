"""A CUDA device: CuPy, cuBLAS, and kernels in `*.cu`. Importing it does not import CuPy."""
