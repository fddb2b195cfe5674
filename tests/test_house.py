"""The rule of the house: chapters in front, what they share in folders behind them, and no import that turns back."""

import ast
import re

from conftest import ROOT
import pytest

BEYOND = ROOT / "beyond"
CHAPTERS = {path.stem for path in BEYOND.glob("*.py")} - {"__init__", "beyond"}
ROOMS = {path.parent.name for path in BEYOND.glob("*/__init__.py")}
# the ideas that are combined, and the two that the benchmark measures, are each imported in one place
COMBINED = {
    "fast/flags.py": {"kernels", "quantize", "lookahead"},
    "learn/corpora.py": {"tokenizer"},
    "bench/engines.py": {"batch", "gpu"},
}
CORE = "cli", "encoder", "gpt2", "gpt2_pico", "tf_checkpoint", "utils"
FILES = [*(ROOT / f"{name}.py" for name in CORE), *BEYOND.glob("*.py"), *BEYOND.glob("*/*.py")]


def name_of(path):
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


NAMES = {name_of(path): path for path in FILES}


def imports(source):
    """The names of our modules that a file imports, anywhere in it: at its top, in a function, at its end.

    kernels, quantize and lookahead start complete, which combines them, by beyond.preset: by name, once they are run.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{one.name}" for one in node.names}
    return found & NAMES.keys()


def chapters_in(names):
    return {name.removeprefix("beyond.") for name in names} & CHAPTERS


@pytest.mark.parametrize("chapter", sorted(CHAPTERS))
def test_a_chapter_is_a_command_and_imports_no_other(chapter):
    path = BEYOND / f"{chapter}.py"
    assert re.search(r'^if __name__ == "__main__":\n    cli\.run\(', path.read_text("utf-8"), re.M)
    assert not chapters_in(imports(path.read_text("utf-8")))


def test_what_is_shared_is_in_a_folder_that_says_what_it_is_about():
    for path in BEYOND.glob("*/*.py"):
        used = chapters_in(imports(path.read_text("utf-8")))
        assert used <= COMBINED.get(path.relative_to(BEYOND).as_posix(), set()), path
        assert path.name == "__init__.py" or path.parent.name in ROOMS
    for room in ROOMS:
        tree = ast.parse((BEYOND / room / "__init__.py").read_text("utf-8"))
        assert len(tree.body) == 1 and len(ast.get_docstring(tree)) > 40, room


def in_circles(edges):
    """The names that are left of {name: what it imports} once all that import none of the others are taken away."""
    while leaves := {name for name, found in edges.items() if not found & edges.keys()}:
        edges = {name: found for name, found in edges.items() if name not in leaves}
    return set(edges)


def test_nothing_imports_upward_or_in_a_circle():
    edges = {name: imports(path.read_text("utf-8")) - {"beyond"} for name, path in NAMES.items()}
    assert not [(name, found) for name in CORE for found in edges[name] if found.startswith("beyond")]
    assert not edges["encoder"] and edges["utils"] == {"encoder", "tf_checkpoint"} and edges["cli"] == {"utils"}
    assert not in_circles(edges)


def test_a_broken_rule_is_noticed():
    assert imports("def f():\n    from beyond import train\n    import beyond.gpu as g") == {
        "beyond",
        "beyond.train",
        "beyond.gpu",
    }
    assert in_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == {"a", "b", "c", "d"}


def test_each_chapter_is_in_the_table():
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.py\) ", (BEYOND / "README.md").read_text("utf-8"), re.M)
    assert sorted(name for name, _ in rows) == sorted(CHAPTERS) and all(name == link for name, link in rows)
    rooms = re.findall(r"^\| \[(\w+)/\]\(\w+\) ", (BEYOND / "README.md").read_text("utf-8"), re.M)
    assert sorted(rooms) == sorted(ROOMS)


def test_the_promised_lengths():
    limits = {"gpt2.py": 140, "gpt2_pico.py": 60, "utils.py": 350, "README.md": 160}
    for name, limit in limits.items():
        assert len((ROOT / name).read_text("utf-8").splitlines()) <= limit, name
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"
