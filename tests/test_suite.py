"""The lists that the tests keep about themselves: the slow tests, and the mutations that tests must notice."""

import re

from conftest import ROOT, SLOW
from mutations import MUTATIONS


def names_in(name):
    return re.findall(r"^def (test_\w+)", (ROOT / "tests" / f"test_{name}.py").read_text("utf-8"), re.M)


def applies(file, old, new, name, words):
    """Whether the file contains the old text exactly once, and a test has these words in its name."""
    is_named = any(words in test for test in names_in(name))
    return is_named and old != new and (ROOT / file).read_text("utf-8").count(old) == 1


def test_each_mutation_applies():
    assert len(MUTATIONS) > 60
    assert not [one for one in MUTATIONS if not applies(*one)]


def test_a_mutation_that_does_not_apply_is_noticed():
    for one in (
        ("gpt2.py", "no such text", "", "gpt2", "softmax"),
        ("gpt2.py", "return", "", "gpt2", "softmax"),
        ("gpt2.py", "eps=1e-5", "eps=1e-5", "gpt2", "softmax"),
        ("gpt2.py", "eps=1e-5", "", "gpt2", "no_such_test"),
    ):
        assert not applies(*one)


def test_each_slow_test_exists():
    missing = [
        (name, part)
        for name, parts in SLOW.items()
        for part in parts
        if not any(part.partition("[")[0] in test for test in names_in(name))
    ]
    assert not missing
