"""Fast inference: SIMD for Numba (lanes.py), matrix products (products.py), the file that caches quantized
weights (quantized_file.py), and the flags --kernels, --bits, --weights and --lookahead (flags.py)."""
