"""A training on many devices, of one process or several: which part of what is on which device.

The devices are a mesh of two axes (beyond/py). Along "data" each has other rows, and the gradients are summed;
along "model" they share the weights, split as SPLIT there says, and the optimizer's moments with them, so that a model
may be as many times larger than a device. jit finds out what has to be sent where, between machines, too.
"""

import contextlib
import functools

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

SPLIT = {  # the axis of each parameter that goes over the mesh's axis "model"; all else is everywhere
    "wte": P("model"), "c_attn/w": P(None, None, "model"), "c_attn/b": P(None, "model"), "attn/c_proj/w": P("model"),
    "c_fc/w": P(None, "model"), "c_fc/b": P("model"), "mlp/c_proj/w": P("model")}  # fmt: skip


@contextlib.contextmanager
def memory_errors():
    """Raises MemoryError where JAX raises its own error for a device that is out of memory."""
    try:
        yield
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError from None


def check_dtype(dtype):
    """Raises ValueError unless it is one that models run in."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r} must be float32 or bfloat16")


def check_heads(n_head, mesh):
    """Raises ValueError unless the heads divide over the mesh's axis "model"."""
    if n_head % (n := mesh.shape["model"]):
        fitting = [i for i in range(1, n_head + 1) if n_head % i == 0]
        raise ValueError(
            f"the model's {n_head} heads do not divide over {n} devices: choose one of {fitting} for "
            f"the second number of mesh"
        )


def by_heads(params, n_head):
    """params whose c_attn has axes for queries, keys and values and for heads: w [n_embd, 3, n_head, d], b."""

    def reshape(path, array):
        return array.reshape(*array.shape[:-1], 3, n_head, -1) if "c_attn" in jax.tree_util.keystr(path) else array

    return jax.tree_util.tree_map_with_path(reshape, params)


def spec_of(path):
    """How the parameter at a path of the tree is split."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return next((spec for end, spec in SPLIT.items() if name.endswith(end)), P())


def make_mesh(mesh):
    """A mesh with the axes data and model from a text like 2x4. Raises ValueError if there are not as many devices."""
    sizes, devices = mesh_sizes(mesh), jax.devices()
    n = sizes[0] * sizes[1]
    if n > len(devices) or n < len(devices) and jax.process_count() > 1:
        raise ValueError(f"mesh={mesh} takes {n} devices, and JAX sees {len(devices)}: choose numbers that fit")
    return Mesh(np.array(devices[:n]).reshape(sizes), ("data", "model"))


def mesh_sizes(mesh):
    """(groups, devices in each) from a text like 2x4. Raises ValueError for any other."""
    sizes = str(mesh).split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and 0 < len(size) < 10 and int(size) for size in sizes):
        raise ValueError(f"mesh={mesh!r} must be two numbers, groups of rows x devices that share a model: 2x4, say")
    return int(sizes[0]), int(sizes[1])


def plain(params):
    """params with c_attn as a checkpoint has it; the inverse of by_heads."""

    def reshape(path, array):
        return array.reshape(*array.shape[:-3], -1) if "c_attn" in jax.tree_util.keystr(path) else array

    return jax.tree_util.tree_map_with_path(reshape, params)


def all_devices():
    """A mesh with all devices along "data"."""
    return make_mesh(f"{jax.device_count()}x1")


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
        spec, shape = spec_of(path), np.shape(array)
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
