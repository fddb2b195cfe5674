"""The tutorial: code blocks print the output shown, excerpts equal the source, pictures equal those drawn again."""

import ast
import importlib
import inspect
import json
import re
import shlex
import unicodedata
import xml.etree.ElementTree as xml

from conftest import ROOT
import numpy as np
import pytest

import gpt2
import gpt2_pico
from tutorial import blocks, check, drawing, figures, judge
from tutorial.labels import CHINESE as CHINESE_WORDS

FOLDER = ROOT / "tutorial"
PAGES = {path.name: path.read_text("utf-8") for path in blocks.PAGES}
ENGLISH, CHINESE = PAGES.values()


def same(a, b):
    """Whether two outputs are equal, except for white space and one unit in the last digit of decimals.

    Machines may differ by that much, as they add float32 numbers in different orders.
    """
    number = r"(-?\d+\.\d*)"
    a, b = (re.split(number, " ".join(text.split())) for text in (a, b))
    return (
        len(a) == len(b)
        and a[::2] == b[::2]
        and all(
            abs(float(x) - float(y)) < 1.01 * 10.0 ** -max(2, min(len(n.partition(".")[2]) for n in (x, y)))
            for x, y in zip(a[1::2], b[1::2])
        )
    )


def test_same():
    assert same("a 0.50\n b", "a 0.51 b") and same("[-0.   1.25]", "[0.01 1.25]") and same("12 of 3.123", "12 of 3.124")
    assert (
        not same("a 0.50", "a 0.52")
        and not same("a 12", "a 13")
        and not same("a 0.5", "b 0.5")
        and not same("0.5", "0.5 0.5")
    )


def test_the_blocks_are_up_to_date(monkeypatch):
    """If this fails after an intended change: python -m tutorial.blocks."""
    monkeypatch.chdir(ROOT)
    found = blocks.bring_up_to_date(ENGLISH)
    for (language, old, links), (_, new, _) in zip(blocks.blocks_of(ENGLISH), blocks.blocks_of(found), strict=True):
        assert old == new if links or language else same(old, new), f"found:\n{old}\nexpected:\n{new}"
    assert blocks.with_blocks(found, [""] * 1000) == blocks.with_blocks(ENGLISH, [""] * 1000)


def test_wrong_outputs_and_excerpts_are_found():
    page = "```python\nprint(1 + 1)\n```\n```\n3\n```\n"
    assert blocks.bring_up_to_date(page) == page.replace("3", "2")
    page = 'text\n\n[x](../gpt2.py#L1-L9 "def softmax")\n```python\nold\n```\n'
    first, last = blocks.lines_of("gpt2.py", "def softmax")
    assert blocks.bring_up_to_date(page) == (
        f'text\n\n[gpt2.py:{first}-{last}](../gpt2.py#L{first}-L{last} "def softmax")\n'
        f"```python\n{inspect.getsource(gpt2.softmax)}```\n"
    )
    for page, part in (
        ("```python\nprint(1)\n```\n", "must be below"),
        ("```python\n```\n```\n1\n```\n", "must be below"),
        ("```\n1\n```\n", "no block above it"),
        ('[x](../gpt2.py#L1-L2 "def nothing")\n```\n```\n', "no part"),
    ):
        with pytest.raises(ValueError, match=part):
            blocks.bring_up_to_date(page)


def test_every_function_of_gpt2_is_shown():
    shown = "".join(text for _, text, links in blocks.blocks_of(ENGLISH) if links)
    for node in ast.parse((ROOT / "gpt2.py").read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name != "main":
            assert inspect.getsource(getattr(gpt2, node.name)) in shown, node.name


def test_there_are_eleven_sections():
    for page in PAGES.values():
        assert [int(n) for n in re.findall(r"^## (\d+)\. ", page, re.M)] == list(range(1, 12))
        assert [int(n) for n in re.findall(r"^(\d+)\. \[", page, re.M)] == list(range(1, 12))
    assert f"in {len((ROOT / 'gpt2_pico.py').read_text().splitlines())} lines" in ENGLISH


def test_the_sections_can_be_read_in_an_hour():
    """An hour is 4,000 words: those of sections 1 to 10, without code, outputs, pictures and exercises."""
    sections = re.split(r"^## ", re.sub(r"^```.*?^```$", "", ENGLISH, flags=re.M | re.S), flags=re.M)[1:11]
    prose = "".join(section.partition("\n### Exercises\n")[0] for section in sections)
    prose = re.sub(r"!\[[^]]*\]\([^)]*\)|\]\([^)]*\)", "", prose)
    assert 3000 < len(prose.split()) <= 4000


@pytest.mark.parametrize("name", sorted(PAGES))
def test_each_section_ends_with_exercises(name):
    """The solutions are blocks of the page, so the test of its blocks runs them. GitHub folds them at these lines."""
    for section in re.split(r"^## ", PAGES[name], flags=re.M)[1:12]:
        exercises = section.rpartition("\n### ")[2]
        numbers = re.findall(r"^\*\*(\d)\. [^*]+\*\* ", exercises, re.M)
        assert numbers == ["1", "2", "3"][: len(numbers)] and len(numbers) >= 2, section[:40]
        folded = r"^<details>\n<summary>[^<\n]+</summary>\n\n(.*?)\n\n</details>$"
        solutions = re.findall(folded, exercises, re.M | re.S)
        assert len(solutions) == len(numbers) == exercises.count("<details>")
        assert all("```python" in solution for solution in solutions)


def test_the_glossary_links_to_the_explanations():
    glossary = ENGLISH.partition("\n## Glossary\n")[2].partition("\n## ")[0]
    entries = re.findall(r"^- \[(.*?)\]\(#(.*?)\): ", glossary, re.M)
    assert len(entries) == len(glossary.strip().splitlines()) > 60
    assert entries == sorted(entries, key=lambda entry: entry[0].lower())
    parts = parts_of(ENGLISH)
    for terms, link in entries:
        for term in terms.split(", "):
            stem = term.lower().removesuffix("ing").removesuffix("ion")
            assert stem in parts[link], f"{term} is not in {link}"


def test_the_chinese_glossary_has_the_same_entries():
    english, chinese = (re.findall(r"^- \[(.*?)\]\(#(.*?)\)[:：（](.*)", page, re.M) for page in (ENGLISH, CHINESE))
    same_section = dict(zip(*(anchors(path) for path in blocks.PAGES), strict=True))
    assert [same_section[link] for _, link, _ in english] == [link for _, link, _ in chinese]
    parts = parts_of(CHINESE)
    for terms, link, rest in chinese:
        names = rest.partition("）：")[0] if "）：" in rest else terms  # those in parentheses
        for term in re.split("[、，]", f"{terms}、{names}"):
            assert term.lower() in parts[link], f"{term} is not in {link}"


def parts_of(page):
    """{anchor of a heading: the text up to the next heading, in lower case}, without code and exercises."""
    parts = re.split(r"^(?=##+ )", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S), flags=re.M)[1:]
    parts = [part for part in parts if not re.match("### (Exercises|练习)", part)]
    return {anchor(part.partition("\n")[0].lstrip("# ")): part.lower() for part in parts}


def test_the_checker_accepts_the_functions_of_the_page(tmp_path):
    """The first version of each function on the page, except for generate, which is a plain loop there."""
    taught = {}
    for language, text, _ in blocks.blocks_of(ENGLISH):
        if language == "python" and "def " in text:
            for node in ast.parse(text).body:
                name = getattr(node, "name", "").removeprefix("my_")
                if name in judge.NAMES and name != "generate":
                    taught.setdefault(name, ast.get_source_segment(text, node))
    path = tmp_path / "mine.py"
    source = "\n\n\n".join(taught.values()).replace("gpt2.", "").replace("def my_", "def ")
    path.write_text("import numpy as np\n\n\n" + source, "utf-8")
    found = {finding.function: finding.status for finding, _ in check.check_file(path)}
    assert found == {**dict.fromkeys(judge.NAMES, "right"), "generate": "to do"}


def test_the_pages_claims_about_speed():
    """Within 30 percent, as the numbers vary from one run of the benchmark to the next."""
    with open(ROOT / "beyond" / "benchmark.json", encoding="utf-8") as file:
        measured = json.load(file)
    engines, prose = measured["groups"]["float32"], " ".join(ENGLISH.split())
    ours, limit = engines["gpt2.py"], engines["the machine's limit"]
    factors = {what: float(re.match(r"[\d.]+", ratio)[0]) for what, ratio, _ in measured["more"] if ratio}
    for pattern, expected in (
        (r"about ([\d.]+) times as long as reading all weights", ours["decode 10"] / limit["decode 10"]),
        (r"1000 tokens took as long as decoding some (\d+) tokens", ours["prefill 1000"] / ours["decode 10"]),
        (r"([\d.]+) times as fast for text that repeats itself", factors["lookahead, text that repeats, gpt2.py"]),
        (r"a batch of 16 texts produced about ([\d.]+) times", factors["batch of 16, gpt2.py"]),
    ):
        (claim,) = re.findall(pattern, prose)
        assert abs(float(claim) / expected - 1) < 0.3, (pattern, expected)
    assert factors["lookahead, text that does not repeat, gpt2.py"] > 0.95  # "no slower for other text"


def test_the_pages_claims_about_each_part():
    with open(FOLDER / "parts.json", encoding="utf-8") as file:
        losses = {name: part["loss"] for name, part in json.load(file)["parts"].items()}
    for pattern, before, after in (
        (r"Knowing the token frequencies saves ([\d.]+) nats", "uniform", "counts"),
        (r"the previous token another ([\d.]+):", "counts", "pairs"),
        (r"One head saves ([\d.]+),", "positions", "one head"),
        (r"the feed-forward network ([\d.]+),", "heads", "feed-forward"),
        (r"four blocks instead of one ([\d.]+)\.\s", "feed-forward", "depth"),
    ):
        (claim,) = re.findall(pattern, ENGLISH)
        assert claim == f"{losses[before] - losses[after]:.{len(claim.partition('.')[2])}f}", pattern
    assert abs(losses["embeddings"] - losses["pairs"]) < 0.06  # "as well as the table"
    assert abs(losses["positions"] - losses["embeddings"]) < 0.02  # "alone do not help"


def test_the_held_out_loss_of_the_exercises():
    from tutorial import session

    ids = session.encoder.encode((ROOT / "models/shakespeare/held_out.txt").read_text("utf-8")[:2000])[:256]
    logits = gpt2_pico.gpt2(ids[:-1], **session.params, n_head=session.n_head)
    expected = np.mean(np.logaddexp.reduce(logits.astype(float), axis=1) - logits[np.arange(255), ids[1:]])
    assert abs(session.held_out_loss() - expected) < 1e-4
    assert abs(session.held_out_loss(softmax=lambda x: gpt2.softmax(x)) - expected) < 1e-4
    assert session.held_out_loss(gelu=lambda x: x) > expected + 1


def test_the_two_languages_share_their_blocks():
    assert blocks.blocks_of(CHINESE) == blocks.blocks_of(ENGLISH) and blocks.number_links(CHINESE) == CHINESE
    english, chinese = (re.findall(r"!\[[^]]*\]\((.*?)\)", page) for page in (ENGLISH, CHINESE))
    assert [re.sub(r"^(figures/.*)\.svg$", r"\1.zh.svg", name) for name in english] == chinese


def test_the_chinese_pages_claims_about_chinese(encoder):
    words = [encoder.decode([id]) for id in encoder.decoder]
    assert f"含有汉字的只有 {sum(any('一' <= char <= '鿿' for char in word) for word in words)} 个" in CHINESE
    text, n = re.search("“([^”]*)”五个字符要用 ([0-9]+) 个词元", CHINESE).groups()
    assert len(text) == 5 and len(encoder.encode(text)) == int(n)


def anchors(path):
    """The anchors that GitHub gives a page's headings."""
    page = re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.M | re.S)
    return [anchor(heading) for heading in re.findall(r"^#+ (.*)$", page, re.M)]


def anchor(heading):
    kept = [char for char in heading.lower() if char in "-_ " or unicodedata.category(char)[0] in "LN"]
    return "".join(kept).replace(" ", "-")


@pytest.mark.parametrize("name", sorted(PAGES))
def test_no_link_is_dead(name):
    prose = re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.M | re.S)
    links = re.findall(r'\]\(([^)\s]+)(?: "[^"\n]*")?\)', prose)
    assert len(links) > 80
    for link in links:
        if not link.startswith("https://"):
            path, _, anchor = link.partition("#")
            path = (FOLDER / path if path else FOLDER / name).resolve()
            assert path.exists() and path.is_relative_to(ROOT), link
            if anchor and path.suffix == ".md" and not re.fullmatch(r"L\d+-L\d+", anchor):
                assert anchor in anchors(path), link
    for alt, _ in re.findall(r"!\[([^]]*)\]\((.*?)\)", prose):
        assert len(alt) > 20


@pytest.mark.parametrize("name", sorted(PAGES))
def test_no_code_is_too_wide(name):
    for language, text, links in blocks.blocks_of(PAGES[name]):
        if not (language == "" or links):  # outputs and excerpts cannot be wrapped
            assert max(map(len, text.splitlines()), default=0) <= 110, text
    for path in FOLDER.glob("*.py"):
        assert max(map(len, path.read_text("utf-8").splitlines())) <= 120, path.name


def test_the_flags_on_the_page_exist():
    commands = [text for language, text, links in blocks.blocks_of(ENGLISH) if language == "sh" and not links]
    assert len(commands) > 10
    for command in commands:
        program, *words = shlex.split(command)
        if program == "pip":
            assert all((ROOT / word).exists() for word in words if word.endswith(".txt"))
            continue
        module = importlib.import_module(words[1] if words[0] == "-m" else words[0].removesuffix(".py"))
        words = words[2 if words[0] == "-m" else 1 :]
        main = getattr(module, "main", gpt2.main)
        if not hasattr(module, "main") and hasattr(module, words[0]):  # beyond.classify train
            main, words = getattr(module, words[0]), words[1:]
        flags = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
        assert program == "python" and set(flags) <= set(inspect.signature(main).parameters), command


SVG = "{http://www.w3.org/2000/svg}"
PICTURES = sorted((FOLDER / "figures").glob("*.svg"))


def descriptions(folder):
    """{file: the texts and numbers in its metadata}"""
    found = {}
    for path in sorted(folder.glob("*.svg")):
        element = xml.parse(path).getroot().find(".//{http://purl.org/dc/elements/1.1/}description")
        found[path.name] = json.loads(element.text)
    return found


def test_the_pictures_are_drawn_by_the_command(tmp_path):
    """If this fails after an intended change: python -m tutorial.figures."""
    figures.draw(tmp_path)
    old, new = descriptions(FOLDER / "figures"), descriptions(tmp_path)
    names = {make.__name__ for make in figures.FIGURES}
    assert set(old) == set(new) == {f"{name}{language}.svg" for name in names for language in ("", ".zh")}
    for name in old:
        assert len(old[name]["texts"]) == len(new[name]["texts"]) > 0, name
        assert all(map(same, old[name]["texts"], new[name]["texts"])), name
        np.testing.assert_allclose(new[name]["numbers"], old[name]["numbers"], atol=2e-3, err_msg=name)
        assert b"<dc:date>" not in (FOLDER / "figures" / name).read_bytes()
    figures.draw(tmp_path / "again", [figures.loop])
    for name in "loop.svg", "loop.zh.svg":
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_each_page_shows_each_picture_in_its_language():
    for page, language in (ENGLISH, ""), (CHINESE, ".zh"):
        shown = re.findall(r"\(figures/(.*?)\)", page)
        assert sorted(shown) == sorted(f"{make.__name__}{language}.svg" for make in figures.FIGURES)


def test_the_two_languages_of_a_picture_differ_in_words_only():
    found = descriptions(FOLDER / "figures")
    for make in figures.FIGURES:
        english, chinese = (found[f"{make.__name__}{language}.svg"] for language in ("", ".zh"))
        assert len(english["texts"]) == len(chinese["texts"]) and chinese != english
        for a, b in zip(english["texts"], chinese["texts"]):
            # text without a translation is a token, a number or code
            assert a.isascii() or not re.search("[一-鿿]", a)
            if a != b:
                assert re.search("[一-鿿]", b) and sorted(re.findall(r"\d", a)) == sorted(re.findall(r"\d", b)), (a, b)
    source = "".join((FOLDER / name).read_text("utf-8") for name in ("figures.py", "inside.py", "parts.py"))
    assert all(text.replace("\n", "\\n") in source for text in CHINESE_WORDS)  # all translations are used


def words_of(path):
    """[(text, left, top, right, bottom)] of the horizontal text in a picture, as wide as tutorial.drawing assumes."""
    found = []
    for element in xml.parse(path).getroot().iter(f"{SVG}text"):
        style = dict(part.split(": ", 1) for part in element.get("style").split("; "))
        angle = float(re.match(r"rotate\((\S+)", element.get("transform"))[1])
        x, y, size = float(element.get("x")), float(element.get("y")), float(style["font-size"].removesuffix("px"))
        width = drawing.width_of(element.text, size)
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[style["text-anchor"]]
        if angle == 0:
            found.append((element.text, left, y - 0.75 * size, left + width, y + 0.1 * size))
    return found


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_the_text_of_a_picture_is_readable_everywhere(path):
    """Latin letters and those of GB 2312, which every Chinese font has; no text is cut off or overlaps another."""
    root = xml.parse(path).getroot()
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert len(texts) > 5
    for char in "".join(texts):
        assert ord(char) < 0x180 or char.encode("gb2312"), char
    width, height = map(float, root.get("viewBox").split()[2:])
    words = words_of(path)
    for i, (text, left, top, right, bottom) in enumerate(words):
        assert -0.5 <= left and right <= width + 0.5 and top >= 0 and bottom <= height, text
        for other, left_, top_, right_, bottom_ in words[:i]:
            assert min(right, right_) <= max(left, left_) or min(bottom, bottom_) <= max(top, top_), (text, other)


def test_the_curve_in_the_article_is_that_of_the_model():
    steps, _, held_out, averaged = figures.history_of(ROOT / "models" / "shakespeare" / "loss.svg").T
    readme = (ROOT / "models" / "shakespeare" / "README.md").read_text("utf-8")
    assert len(steps) == int(re.search(r"among (\d+) evaluations", readme)[1])
    assert averaged.min() < held_out.min() and steps[averaged.argmin()] == int(
        re.search(r"the averaged weights after (\d+) updates", readme)[1]
    )
