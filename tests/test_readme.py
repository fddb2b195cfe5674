"""What the README says is so."""

import inspect
import re

from conftest import ROOT
import pytest

import gpt2
import picogpt
import utils

README = (ROOT / "README.md").read_text("utf-8")


def test_the_flags_are_those_of_main():
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in README.splitlines() if row.startswith("| `--")]
    parameters = inspect.signature(gpt2.main).parameters
    assert [name for name, *_ in rows] == [f"`--{name}`" for name in parameters]
    for (_, _, _, default), parameter in zip(rows, parameters.values()):
        assert parameter.default is None or default.startswith(f"`{parameter.default}`")


def test_ci_runs_the_test_command():
    command = next(line for line in README.splitlines() if "pytest" in line)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_requirement_is_needed_and_has_its_reason():
    for path in "requirements.txt", "beyond/requirements.txt", "tests/requirements.txt":
        reason = False
        for line in (ROOT / path).read_text().splitlines():
            assert reason or "#" in line
            reason = line.startswith("#")
    names = re.findall(r"^([\w-]+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert names == ["numpy", "regex", "requests", "tqdm", "fire", "tensorflow"]


def test_the_files_exist():
    files = re.findall(r"^\| `([\w./]+)` (?:\* )?\|", README, re.M)
    assert len(files) == 42 and all((ROOT / name).exists() for name in files if not name.endswith("models/"))


def test_no_line_is_wider_than_a_screen():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            assert len(line) <= 160, f"{path.name}:{number}"
    for path in [*ROOT.glob("*.py"), *ROOT.glob("beyond/*.py")]:
        assert max(map(len, path.read_text("utf-8").splitlines())) <= 120, path.name


def test_what_pip_installs():
    """The four files, with the core's requirements but TensorFlow, and platformdirs for where models are kept."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 up
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = [re.split(" *[;#]", line)[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    core = [line for line in core if line]
    assert set(core) == {*project["dependencies"][:5], *project["optional-dependencies"]["tensorflow"]}
    assert [line[:12] for line in project["dependencies"][5:]] == ["platformdirs"]
    assert picogpt.generate is gpt2.generate and picogpt.__version__ == utils.VERSION
