"""Many devices and several processes that work on one model with JAX.

sharding: which part of the weights and of a batch is on which device; processes: how the processes find each other.
"""
