"""When outputs may be written, and how: only over files that the same command made, and atomically.

A command proves that a file is its own before replacing it (check_file); it never replaces an input or a device. The
new content is written under another name in the same folder and then takes the target's name (write_whole, new_folder).
"""

import contextlib
import os
import re
import secrets
import stat
import tempfile

import cli

cli.PATHS.add("--out")


def write_whole(path, write):
    """Calls write(part), part being a new empty file; when it returns, part replaces path. Follows a symbolic link.

    A new file gets the permissions that umask leaves, an existing one keeps its own. After any error part is removed
    and path is unchanged; an error of the operating system is raised as an OSError that names path.
    """
    target = os.path.realpath(path)
    name, ending = os.path.splitext(target)
    part = f"{name}.{secrets.token_hex(8)}.part{ending}"
    try:
        mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else None
        os.close(os.open(part, os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
        try:
            write(part)
            if mode is not None:
                os.chmod(part, mode)
            os.replace(part, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.remove(part)
            raise
    except OSError as error:
        if error.errno:
            raise OSError(f"cannot write {path}: {error.strerror}") from None
        raise


def is_part(name):
    """Whether a file has the name of an incomplete one, which write_whole leaves only if its process is killed."""
    return bool(re.search(r"\.[0-9a-f]{16}\.part(\.[^.]*)?$", name))


def write_text(path, text):
    """Writes a text as UTF-8, as write_whole does."""

    def write(part):
        with open(part, "w", encoding="utf-8", newline="") as file:
            file.write(text)

    write_whole(path, write)


@contextlib.contextmanager
def new_folder(folder):
    """Yields an empty folder beside this one, which takes its name after the block; after any error it is removed.

    If the folder exists before the block, the new files move into it instead, replacing those of the same name. Raises
    OSError that names the folder, also if another program has put files there in the meantime.
    """
    exists = os.path.isdir(folder)
    parent, name = os.path.split(os.path.realpath(folder))
    try:
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}.part-", dir=parent) as work:
            os.mkdir(part := os.path.join(work, "new"))  # with the umask's permissions; work itself is private
            yield part
            for entry in os.listdir(part) if exists else ():
                os.replace(os.path.join(part, entry), os.path.join(folder, entry))
            if not exists:
                os.rename(part, os.path.realpath(folder))
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write {folder}: {reason}; make room there, or choose another folder") from None


def check_file(path, is_ours, *inputs):
    """Raises ValueError unless path can become the output of this command and is not one of its inputs.

    is_ours: a function of an open binary file that returns whether this command wrote it.
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
        raise ValueError(f"{path} is also the input and would be lost: name another file for the output")
    with open(path, "rb") as file:
        if os.path.getsize(path) and not is_ours(file):
            raise ValueError(
                f"{path} already exists, and this command did not write it: choose another --out, or remove it"
            )
