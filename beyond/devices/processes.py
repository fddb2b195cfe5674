"""Several processes, on one or more machines, that work on one model: how they connect, and check their inputs."""

import hashlib
import os
import socket
import sys
import time

import jax
from jax.experimental import multihost_utils
import numpy as np

import cli

cli.HELP.update(
    coordinator="HOST:PORT of process 0, if there are several. All need the same flags except process_id.",
    n_processes="The number of processes.",
    process_id="The number of this process, from 0 to n_processes - 1.",
)


def meet(coordinator, n_processes, process_id, patience=120):
    """Waits until all processes have reached HOST:PORT of process 0, because JAX kills a process if its wait times out.

    Raises ValueError for anything but HOST:PORT, OSError if the others do not appear within patience seconds.
    """
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdecimal() or not 0 < len(port) < 6 or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator={coordinator!r} must be HOST:PORT of process 0, with a port from 1 to 65535")
    try:
        socket.getaddrinfo(host, int(port))
        if process_id == 0:
            with socket.create_server(("", int(port))) as server:
                for _ in range(1, n_processes):
                    server.settimeout(patience)
                    server.accept()[0].close()
            return
        for second in range(patience, -1, -1):
            try:
                return socket.create_connection((host, int(port)), timeout=patience).close()
            except ConnectionRefusedError:  # process 0 has not started yet
                if not second:
                    raise
                time.sleep(1)
    except OSError as error:
        others = "the other processes" if process_id == 0 else "process 0"
        raise OSError(
            f"no connection with {others} at {coordinator}: {error.strerror or error}; start all {n_processes} "
            f"within {patience} seconds, with the same coordinator"
        ) from None


def join(coordinator, n_processes, process_id):
    """Makes this process one of several that see each other's devices, if there is a coordinator. Raises as meet."""
    cli.check("n_processes", n_processes, 1, 10**5)
    cli.check("process_id", process_id, 0, n_processes - 1, "less than n_processes")
    if coordinator is not None:
        meet(coordinator, n_processes, process_id)
        sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")
        os.dup2(2, 1)  # what C++ code such as Gloo prints to standard output goes to standard error
        jax.distributed.initialize(coordinator, n_processes, process_id)


def is_process_0():
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def check_same(text):
    """Raises ValueError unless all processes pass the same text."""
    mine = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
    if jax.process_count() > 1 and (multihost_utils.process_allgather(mine) != mine).any():
        raise ValueError(
            "the processes differ in their flags, texts or states: start all with the same ones, and with a models_dir "
            "that they share"
        )
