"""How weights and batches are split over devices.

The devices form a mesh with two axes. Along "data" (data parallelism) each device has different sequences, and the
gradients are summed. Along "model" (tensor parallelism) each has a part of the weights and of the optimizer's moments,
so that a model can be larger than a device: attention is split by heads, mlp by columns and then by rows, wte by
vocabulary, as in Megatron-LM (https://arxiv.org/abs/1909.08053). jit inserts the communication.
"""

import contextlib
import functools

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

import cli

SPLIT = {  # the axis of each parameter that is split along the mesh's axis "model"; all else is on every device
    "wte": P("model"), "c_attn/w": P(None, None, "model"), "c_attn/b": P(None, "model"), "attn/c_proj/w": P("model"),
    "c_fc/w": P(None, "model"), "c_fc/b": P("model"), "mlp/c_proj/w": P("model")}  # fmt: skip

cli.HELP.update(
    mesh="DATAxMODEL: how many groups of devices work on different sequences, and how many devices in each group share "
    "the weights.",
)

# --- checks ---


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
    """Raises ValueError for a type in which models cannot run."""
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r} must be float32 or bfloat16")


def check_heads(n_head, mesh):
    """Raises ValueError unless the heads can be split evenly along the mesh's axis "model"."""
    if n_head % (n := mesh.shape["model"]):
        fitting = [i for i in range(1, n_head + 1) if n_head % i == 0]
        raise ValueError(
            f"the model's {n_head} heads cannot be split evenly across {n} devices: make the second number of mesh "
            f"one of {fitting}"
        )


# --- the mesh ---


def make_mesh(mesh):
    """A mesh with the axes data and model from a string such as 2x4. Raises ValueError if there are too few devices."""
    sizes, devices = mesh_sizes(mesh), jax.devices()
    n = sizes[0] * sizes[1]
    if n > len(devices) or n < len(devices) and jax.process_count() > 1:
        raise ValueError(f"mesh={mesh} takes {n} devices, but JAX sees {len(devices)}: choose numbers that fit")
    return Mesh(np.array(devices[:n]).reshape(sizes), ("data", "model"))


def mesh_sizes(mesh):
    """(groups, devices in each) from a string such as 2x4. Raises ValueError for any other."""
    sizes = str(mesh).split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and 0 < len(size) < 10 and int(size) for size in sizes):
        raise ValueError(
            f"mesh={mesh!r} must be two numbers such as 2x4: groups of devices, and devices in each that share a model"
        )
    return int(sizes[0]), int(sizes[1])


def all_devices():
    """A mesh with all devices along "data"."""
    return make_mesh(f"{jax.device_count()}x1")


# --- weights ---


def by_heads(params, n_head):
    """params with c_attn reshaped, so that it can be split by heads: w [n_embd, 3, n_head, d], b [3, n_head, d]."""
    return _reshape_c_attn(params, lambda array: array.reshape(*array.shape[:-1], 3, n_head, -1))


def plain(params):
    """The inverse of by_heads: c_attn as in a checkpoint."""
    return _reshape_c_attn(params, lambda array: array.reshape(*array.shape[:-3], -1))


def _reshape_c_attn(params, reshape):
    def one(path, array):
        return reshape(array) if "c_attn" in jax.tree_util.keystr(path) else array

    return jax.tree_util.tree_map_with_path(one, params)


def spec_of(path):
    """How the parameter at a path of the tree is split."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return next((spec for end, spec in SPLIT.items() if name.endswith(end)), P())


# --- arrays on the mesh, and back ---


def put(array, mesh, spec):
    """Puts a NumPy array, which every process has, on the mesh; each process sends what its own devices need."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])


def put_rows(arrays, mesh, axis=0):
    """Splits a tree of arrays along "data", by this axis."""
    return jax.tree.map(lambda array: put(array, mesh, P(*[None] * axis, "data")), arrays)


def put_all(tree, mesh):
    """Replicates arrays on every device."""
    return jax.tree.map(lambda array: put(array, mesh, P()), tree)


def split(tree, mesh, put=put):
    """Splits weights, or the optimizer's state for each, as SPLIT says; replicates one that cannot be split evenly."""

    def one(path, array):
        spec, shape = spec_of(path), np.shape(array)
        fits = len(spec) <= len(shape) and all(n % mesh.shape[axis] == 0 for n, axis in zip(shape, spec) if axis)
        return put(array, mesh, spec if fits else P())

    return jax.tree_util.tree_map_with_path(one, tree)


def keep_split(tree, mesh):
    """As split, within jit."""
    return split(tree, mesh, lambda x, *where: jax.lax.with_sharding_constraint(x, NamedSharding(*where)))


def fetch(tree, mesh):
    """NumPy copies of the whole arrays, in every process."""
    return jax.tree.map(lambda x: np.array(_gather(mesh)(x)), tree)


@functools.lru_cache(None)
def _gather(mesh):
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
