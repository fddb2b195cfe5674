import os
import subprocess
import sys

from conftest import ROOT
import pytest

from beyond.files import writing
from beyond.learn.state import check_new


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_has_the_usual_permissions_and_an_old_one_keeps_its_own(tmp_path, mask):
    before = os.umask(mask)
    try:
        (tmp_path / "plain").write_text("")
        for name, mode in ("new", 0o666 & ~mask), ("private", 0o600), ("shared", 0o664), ("read-only", 0o444):
            if name != "new":
                (tmp_path / name).write_text("old")
                (tmp_path / name).chmod(mode)
            writing.write_text(tmp_path / name, "new")
            assert (tmp_path / name).stat().st_mode & 0o777 == mode and (tmp_path / name).read_text() == "new"
        assert (tmp_path / "plain").stat().st_mode == (tmp_path / "new").stat().st_mode
    finally:
        os.umask(before)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    for text in "one", "two":
        writing.write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "file").read_text() == text
    assert os.listdir(tmp_path / "folder") == ["file"]


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    """Each writes a file of its own; a file that has such a name already is not touched."""
    (tmp_path / "a.part.txt").write_text("mine")

    def write(part):
        assert part.endswith(".txt") and os.path.getsize(part) == 0
        with open(part, "w") as file:
            file.write("outer")
            writing.write_text(tmp_path / "a.txt", "inner")
            assert (tmp_path / "a.txt").read_text() == "inner"

    writing.write_whole(tmp_path / "a.txt", write)
    assert (tmp_path / "a.txt").read_text() == "outer" and (tmp_path / "a.part.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["a.part.txt", "a.txt"]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("removed", [False, True])
def test_an_error_leaves_the_folder_as_it_was(tmp_path, error, removed):
    (tmp_path / "a.txt").write_text("old")

    def write(part):
        if removed:
            os.remove(part)
        raise error

    with pytest.raises(type(error)) as found:
        writing.write_whole(tmp_path / "a.txt", write)
    if isinstance(error, OSError):
        assert str(found.value) == f"cannot write {tmp_path}/a.txt: No space left on device"
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_errors(tmp_path):
    for path in tmp_path / "none" / "a.txt", tmp_path:
        with pytest.raises(OSError, match=f"cannot write {path}: "):
            writing.write_text(path, "a")
    assert os.listdir(tmp_path) == []


def test_a_killed_process_leaves_a_file_that_is_known_as_incomplete(tmp_path):
    """A model can be made in a folder with nothing else in it."""
    program = (
        "import os, sys; from beyond.files import writing; writing.write_whole(sys.argv[1], lambda _: os._exit(1))"
    )
    subprocess.run([sys.executable, "-c", program, f"{tmp_path}/train.npz"], cwd=ROOT)
    (name,) = os.listdir(tmp_path)
    assert writing.is_part(name) and name.endswith(".npz")
    assert not any(map(writing.is_part, ["train.npz", "train.part.npz", "a.0123456789abcdef.npz", "mine"]))
    check_new(tmp_path)
    (tmp_path / "train.part.npz").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        check_new(tmp_path)
