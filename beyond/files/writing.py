"""When an output may be written, and how."""

import os
import stat
import sys

from beyond.files.runs import STATE
import utils


def write_whole(path, write):
    """Lets write(part) make a file, which gets its name only when it is whole. Follows a symbolic link."""
    name, ending = os.path.splitext(os.path.realpath(path))
    part = f"{name}.part{ending}"
    try:
        write(part)
        os.replace(part, name + ending)
    except BaseException as error:
        if os.path.exists(part):
            os.remove(part)
        if isinstance(error, OSError) and error.errno:
            raise OSError(f"cannot write {path}: {error.strerror}") from None
        raise


def write_text(path, text):
    """A UTF-8 text to a file, as write_whole does."""

    def write(part):
        with open(part, "w", encoding="utf-8", newline="") as file:
            file.write(text)

    write_whole(path, write)


def check_file(path, is_ours, *inputs):
    """Raises ValueError unless path can become the output of this command, whose inputs are other files.

    is_ours: a function of an open binary file that says whether this command wrote it.
    """
    path = str(path)
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"No such file or directory: {path}: make the folder {folder} first")
    if not os.path.exists(path):
        return
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is a folder or a device: name a file for the output")
    if any(os.path.exists(other) and os.path.samefile(path, other) for other in inputs):
        raise ValueError(f"{path} is the input, too, and would be lost: name another file for the output")
    with open(path, "rb") as file:
        if os.path.getsize(path) and not is_ours(file):
            raise ValueError(
                f"{path} is there already, and this command did not write it: give another out, or remove it"
            )


def check_new(folder):
    """Raises ValueError unless a model can be made in the folder: it is not there, is empty, or holds a run's state."""
    if os.path.basename(os.path.realpath(folder)) in utils.SHA256:
        raise ValueError(f"{folder} has the name of a model of OpenAI's, and would be taken for it: give another name")
    if not os.path.exists(folder):
        return
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is a file: give the name of a new folder")
    found = set(os.listdir(folder))
    if STATE not in found and found - {"train.part.npz"}:
        what = "is a model already" if {utils.DATA, "adapter.npz"} & found else "holds other files"
        raise ValueError(f"{folder} {what}: give another name, or remove that folder")


def lock(file):
    """Raises ValueError if another process has locked an open file. The lock ends with the file or the process."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is writing to {file.name}: wait for it, or give another out") from None
    except OSError as error:  # a file system without locks
        print(f"note: {file.name} cannot be locked ({error.strerror}): one run at a time", file=sys.stderr)
