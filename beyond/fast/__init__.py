"""Fast inference: SIMD for Numba (lanes.py), the product with quantized weights (products.py), the file with them
(quantized_file.py), and the flags --kernels, --bits, --weights and --lookahead (flags.py)."""
