"""The tutorial's notebooks match the pages, print what they show, and can be started in an empty folder."""

import base64
import hashlib
import io
import os
import shutil
import subprocess
import sys

from conftest import ROOT
from nbclient import NotebookClient
import nbformat
from PIL import Image
import pytest
from test_tutorial import same

from tutorial import blocks, judge, notebooks

PAGES = {page.name: page for page in blocks.PAGES}
MADE = {page: nbformat.read(notebooks.NOTEBOOKS[page], 4) for page in blocks.PAGES}


def pictures_of(notebook):
    """{file that a cell shows: its PNG, in base64, in the notebook}"""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = [(cell.source, output.data) for cell in cells for output in cell.outputs if "data" in output]
    return {source.split('"')[1]: data["image/png"] for source, data in found}


def stdout_of(outputs):
    return "".join(one.text for one in outputs if one.get("name") == "stdout")


def code_of(notebook):
    """The code of each cell, without comment lines."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    lines = [[line for line in cell.splitlines() if not line.startswith("#")] for cell in cells]
    return ["\n".join(part).replace(".zh.svg", ".svg") for part in lines]


@pytest.mark.parametrize("name", PAGES)
def test_the_notebooks_match_the_pages(name):
    """If this fails after an intended change: python -m tutorial.notebooks."""
    page = PAGES[name]
    kept = pictures_of(MADE[page])
    path = notebooks.NOTEBOOKS[page]
    made = notebooks.notebook(page, lambda path: kept[path.relative_to(ROOT).as_posix()])
    nbformat.validate(made)
    assert notebooks.content(made) == path.read_text("utf-8")
    assert path.stat().st_size < 1_500_000
    for picture, data in kept.items():  # each was drawn for the current SVG file
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert image.text["Source"] == hashlib.sha256((ROOT / picture).read_bytes()).hexdigest(), picture
        assert image.width > 900 and image.convert("L").getextrema() != (0, 0)


def test_both_notebooks_have_the_same_code():
    english, chinese = MADE.values()
    assert code_of(english) == code_of(chinese)


def test_a_notebook_has_all_blocks_of_the_page_and_a_cell_per_exercise():
    page = PAGES["README.md"].read_text("utf-8")
    notebook = MADE[PAGES["README.md"]]
    cells = [cell.source for cell in notebook.cells]
    everything = "\n".join(cells)
    for language, text, _ in blocks.blocks_of(notebooks.PAGE_ONLY.sub("", page)):
        if language:
            assert text.strip("\n") in everything
    n = page.count("<summary>")
    assert n == cells.count("# your code") == sum("<summary>" in cell and "</details>" in cell for cell in cells)
    stubs = "".join(cell for cell in cells if cell.startswith("%%writefile"))
    assert sorted(judge.NAMES) == sorted(name for name in judge.NAMES if stubs.count(f"def {name}(") == 1)


def test_links_inside_a_notebook():
    page = '# A\n\n[b](#b-c-d) [c](README.zh.md)\n\n[x](../gpt2.py#L1-L2 "def softmax")\n```python\n1\n```\n\n## B `c` (d)\n'
    assert notebooks.anchors(page) == {"a": "A", "b-c-d": "B-c-%28d%29"}
    cells = notebooks.Cells(page, None, "")
    assert cells.linked("[b](#b-c-d) [c](README.zh.md)") == "[b](#B-c-%28d%29) [c](tutorial.zh.ipynb)"
    assert cells.linked('[gpt2.py](../gpt2.py#L1-L2 "def softmax")') == "[gpt2.py](../gpt2.py#L1-L2)"


def test_pieces():
    page = "a\n\nb\n```python\nx = 1\n```\n```python\nprint(x)\n```\n```\n1\n```\n```sh\nls\n```\n```sh\necho\n```\n```\n\n```\nc\n"
    link = '[gpt2.py:1-2](../gpt2.py#L1-L2 "def softmax")'
    assert list(notebooks.pieces(f"{page}\n{link}\n```python\ny\n```\n```diff\nz\n```\n")) == [
        ("text", "a", None),
        ("text", "b", None),
        ("python", "x = 1\n", None),
        ("python", "print(x)\n", "1\n"),
        ("shown", "```sh\nls\n```", None),
        ("sh", "echo\n", "\n"),
        ("text", "c", None),
        ("text", link, None),
        ("shown", "```python\ny\n```", None),
        ("shown", "```diff\nz\n```", None),
    ]


def test_a_page_as_a_notebook(tmp_path):
    (tmp_path / "README.md").write_text(
        "# T\n\n<!-- page -->\nnot here\n```sh\npip\n```\n<!-- /page -->\n\n![A cat.](figures/loop.svg)\n\n"
        "Write `gelu` in `mine.py`.\n\n## 1. B\n\n### Exercises\n\n**1. C.** Say.\n\n<details>\n<summary>Solution</summary>"
        "\n\n```python\nprint(1)\n```\n```\n1\n```\n\nSo.\n\n</details>\n\nEnd.\n"
    )
    made = notebooks.notebook(tmp_path / "README.md", lambda path: f"png of {path.name}")
    kinds = [(cell.cell_type[0], cell.source) for cell in made.cells[1:]]
    assert kinds == [
        ("m", "# T"),
        ("c", 'SVG("tutorial/figures/loop.svg")'),
        ("m", "Write `gelu` in `mine.py`."),
        ("c", "%%writefile mine.py\nimport numpy as np\n\n\n" + notebooks.stubs(["gelu"])),
        ("c", notebooks.CHECK.strip()),
        ("m", "## 1. B"),
        ("m", "### Exercises\n\n**1. C.** Say."),
        ("c", "# your code"),
        ("m", "<details>\n<summary>Solution</summary>\n\n```python\nprint(1)\n```\n```\n1\n```\n\nSo.\n\n</details>"),
        ("m", "End."),
    ]
    assert made.cells[2].outputs[0].data == {"image/png": "png of loop.svg", "text/plain": "A cat."}
    assert len({cell.id for cell in made.cells}) == len(made.cells)


def test_the_first_cell_fetches_the_repository_if_it_is_missing(tmp_path):
    """With a pip that only prints its arguments."""
    source = tmp_path / "source"
    empty = tmp_path / "empty"
    (source / "beyond").mkdir(parents=True)
    empty.mkdir()
    (source / "pip.py").write_text("import sys; print(*sys.argv[1:], flush=True)")
    for name in "gpt2.py", "requirements.txt", "beyond/requirements.txt":
        (source / name).write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(source)]
    for words in ["init", "-q"], ["add", "."], ["commit", "-qm", "all"]:
        subprocess.run([*git, *words], check=True)
    code = notebooks.SETUP.format(source.as_uri()).replace("from IPython.display import SVG", "print(os.getcwd())")
    installed = "install -q -r requirements.txt -r beyond/requirements.txt"
    for cwd, folder, lines in (
        (empty, empty / "picogpt", [installed]),
        (empty / "picogpt", empty / "picogpt", []),
        (source / "beyond", source, []),
    ):
        done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True)
        *found, last = done.stdout.splitlines()
        assert found == lines and os.path.samefile(last, folder)


def test_every_cell_prints_the_stored_output(tmp_path):
    """Runs the whole notebook in its own folder of a copy of the repository, including the checks of mine.py."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "tests", "page")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored, symlinks=True)
    notebook = nbformat.from_dict(MADE[PAGES["README.md"]])
    before = [list(cell.get("outputs", [])) for cell in notebook.cells]
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path / "copy" / "tutorial"}})
    client.execute(env={**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]})
    n_checks = 0
    for cell, old in zip(notebook.cells, before):
        output, expected = map(stdout_of, (cell.get("outputs", []), old))
        if cell.source == notebooks.CHECK.strip():
            n_checks += output.count("still to do") // 10
        elif not cell.source.startswith("%%writefile"):
            assert same(expected, output), f"{cell.source}\n{expected}\n{output}"
    assert n_checks == sum(cell.source == notebooks.CHECK.strip() for cell in notebook.cells) > 3
