"""Several devices and processes that work on one model with JAX.

sharding: how weights and batches are split over devices; processes: how the processes find each other.
"""
