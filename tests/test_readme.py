"""What the README says is so."""

import inspect
import json
import re

from conftest import ROOT
import pytest

import gpt2

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
    assert names == ["numpy", "regex", "requests", "tqdm", "filelock", "fire", "tensorflow"]


def test_the_files_exist():
    files = re.findall(r"^\| `([\w./]+)` \|", README, re.M)
    assert len(files) == 12 and all((ROOT / name).exists() for name in files)
    for page in "README.md", "beyond/README.md", "CONTRIBUTING.md":
        links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", (ROOT / page).read_text("utf-8"))
        assert len(links) > 2 and all((ROOT / page).parent.joinpath(link).exists() for link in links), links


def test_the_figures_of_speed_are_the_benchmarks():
    """The README's few figures, and all of them in beyond/README.md."""
    groups = json.loads((ROOT / "beyond" / "benchmark.json").read_text())["groups"]
    engines = {name: found for group in ("4 bits", "8 bits", "float32") for name, found in groups[group].items()}
    section = README.partition("## Speed")[2].partition("## Limits")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in section.splitlines() if row[:2] == "| "][1:]
    assert len(rows) == 8
    for name, *cells in rows:
        times = [n / engines[name][what] for what, n in (("decode 10", 1), ("decode 900", 1), ("prefill 1000", 1000))]
        assert cells == [f"{rate:.0f}" for rate in times]
    assert (ROOT / "beyond" / "benchmark.md").read_text("utf-8") in (ROOT / "beyond" / "README.md").read_text("utf-8")


def test_no_line_is_wider_than_a_screen():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            assert len(line) <= 160, f"{path.name}:{number}"
    for path in [*ROOT.glob("*.py"), *ROOT.glob("beyond/*.py")]:
        assert max(map(len, path.read_text("utf-8").splitlines())) <= 120, path.name


def test_what_pip_installs():
    """The core's requirements without TensorFlow, and platformdirs for the folder of downloads."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 up
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = [re.split(" *[;#]", line)[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    core = {line for line in core if line}
    named, tensorflow = set(project["dependencies"]), set(project["optional-dependencies"]["tensorflow"])
    assert core == (named | tensorflow) - {"platformdirs>=3"} and "platformdirs>=3" in named


def test_the_first_command_is_the_one_that_is_tested():
    """tests/test_package.py installs and runs it."""
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2 and "pip install -q . && .venv/bin/picogpt" in commands[0] and "pytest" in commands[1]
