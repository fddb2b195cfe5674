"""Several processes that work on one model."""

import hashlib
import os
import socket
import sys
import time

import jax
from jax.experimental import multihost_utils
import numpy as np

import cli


def meet(coordinator, n_processes, process_id, patience=120):
    """Waits until all processes are there, at HOST:PORT of process 0, as JAX ends a program that waits in vain.

    Raises ValueError for what is no HOST:PORT, OSError if the others are not there after patience seconds.
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
            except ConnectionRefusedError:  # process 0 is not there yet
                if not second:
                    raise
                time.sleep(1)
    except OSError as error:
        others = "the other processes" if process_id == 0 else "process 0"
        raise OSError(
            f"no connection with {others} at {coordinator}: {error.strerror or error}; begin all {n_processes} "
            f"within {patience} seconds, with the same coordinator"
        ) from None


def join(coordinator, n_processes, process_id):
    """Makes this process one of several, which see each other's devices, if a coordinator is named. Raises as meet."""
    cli.check("n_processes", n_processes, 1, 10**5)
    cli.check("process_id", process_id, 0, n_processes - 1, "less than n_processes")
    if coordinator is not None:
        meet(coordinator, n_processes, process_id)
        sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="replace")
        os.dup2(2, 1)  # so that what C++ prints on the standard output, as Gloo does, goes to the standard error
        jax.distributed.initialize(coordinator, n_processes, process_id)


def check_same(what):
    """Raises ValueError unless all processes say the same text."""
    mine = np.frombuffer(hashlib.sha256(what.encode()).digest(), np.uint32)
    if jax.process_count() > 1 and (multihost_utils.process_allgather(mine) != mine).any():
        raise ValueError(
            "the processes have other flags, texts or states: begin all with the same ones, and with a models_dir that "
            "is one folder for all"
        )
