"""A training on many devices, of one process or several: which part of what is on which device.

The devices are a mesh of two axes (beyond/gpu.py). Along "data" each has other rows, and the gradients are summed;
along "model" they share the weights, split as SPLIT there says, and the optimizer's moments with them, so that a model
may be as many times larger than a device. jit finds out what has to be sent where, between machines, too.
"""

from concurrent.futures import ThreadPoolExecutor
import functools
import hashlib
import itertools
import time

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from beyond import gpu


def all_devices():
    """A mesh with all devices along "data"."""
    return gpu.make_mesh(f"{jax.device_count()}x1")


def put(array, mesh, spec):
    """A NumPy array, which all processes have, on the mesh; each process sends what its devices need."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda place: array[place])


def put_rows(rows, mesh, axis=0):
    """Arrays whose axis counts rows, dealt out along "data"."""
    return jax.tree.map(lambda array: put(array, mesh, P(*[None] * axis, "data")), rows)


def put_all(tree, mesh):
    """Arrays that every device has whole."""
    return jax.tree.map(lambda array: put(array, mesh, P()), tree)


def split(tree, mesh, put=put):
    """Weights, or what an optimizer keeps of each, by the names in their paths; whole where they do not divide."""

    def one(path, array):
        spec, shape = gpu.spec_of(path), np.shape(array)
        fits = len(spec) <= len(shape) and all(n % mesh.shape[axis] == 0 for n, axis in zip(shape, spec) if axis)
        return put(array, mesh, spec if fits else P())

    return jax.tree_util.tree_map_with_path(one, tree)


def keep_split(tree, mesh):
    """As split, within jit."""
    return split(tree, mesh, lambda x, *place: jax.lax.with_sharding_constraint(x, NamedSharding(*place)))


def fetch(tree, mesh):
    """Copies of arrays that are split, whole and in NumPy, for each process."""
    return jax.tree.map(lambda x: np.array(_gather(mesh)(x)), tree)


@functools.lru_cache(None)
def _gather(mesh):
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))


def check_same(what):
    """Raises ValueError unless all processes say the same text."""
    mine = np.frombuffer(hashlib.sha256(what.encode()).digest(), np.uint32)
    if jax.process_count() > 1 and (multihost_utils.process_allgather(mine) != mine).any():
        raise ValueError(
            "the processes have other flags, texts or states: begin all with the same ones, and with a models_dir that "
            "is one folder for all"
        )


def read_ahead(function, arguments):
    """Yields function(argument) for each, and the seconds that this took to wait for; a thread makes the next one."""
    arguments = iter(arguments)
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(function, one) for one in itertools.islice(arguments, 1)]
        while coming:
            begin = time.perf_counter()
            found = coming.pop().result()
            waited = time.perf_counter() - begin
            coming = [thread.submit(function, one) for one in itertools.islice(arguments, 1)]
            yield found, waited
