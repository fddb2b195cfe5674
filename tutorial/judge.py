"""check() finds out which functions of a GPT-2 are right, and which mistakes the others contain.

Each function is called on the inputs of tutorial/inputs.py and compared with the correct one. If the numbers differ,
the mistakes of tutorial/mistakes.py are made in the correct function, one at a time, then two at a time: the mistake
that reproduces the reader's numbers on all inputs is the reader's. A wrong or missing function is replaced by the
correct one before its callers are checked, so that each mistake is reported once.

This module uses no files, processes or threads; those are in tutorial/check.py.
"""

import contextlib
import copy
import inspect
import io
import itertools
import linecache
from typing import NamedTuple

import numpy as np

from tutorial.inputs import causal
from tutorial.mistakes import RIGHT, SOURCES, called_by, made_in, variant

NAMES = [name for name in RIGHT if name != "hidden_states"]  # hidden_states is optional, but checked if present
FLOAT64 = (
    "The numbers are right, but float32 input gives float64 output, which takes twice the memory and time. The cause "
    "is np.tri, np.zeros or np.array without a dtype, or a NumPy scalar: np.sqrt(2 / np.pi) is a float64, whereas "
    "(2 / np.pi) ** 0.5 is a Python float, which does no harm."
)
CHANGED = "It modifies its argument {}, so the caller's array changes too. Write x = x + 1 instead of x += 1."
APPENDED = "It modifies the caller's list {}. Start with a copy: ids = list(inputs)."


class Finding(NamedTuple):
    """The verdict on a function. status: right, wrong, to do or waits; mistakes: their names; text: for the reader."""

    function: str
    status: str
    mistakes: list = []
    text: str = ""


class Outcome(NamedTuple):
    """What a call did: [result, *caches] or an error's name and description; arguments modified; text printed."""

    results: list
    error: str = ""
    text: str = ""
    changed: list = []
    printed: str = ""


class WaitsError(Exception):
    """A function that is not right yet is called with arguments that its stand-in, the correct one, does not accept."""


# --- calling and comparing ---


class FirstLine(io.StringIO):
    """Keeps only the beginning of the text written to it."""

    def write(self, text):
        return super().write(text[:200]) if self.tell() < 200 else len(text)


def attempt(function, case, namespace=None, names=()):
    """The Outcome of a function on a copy of (args, kwargs).

    namespace: the globals of the reader's file. names: the arguments that the function must not modify.
    """
    args, kwargs = copy.deepcopy(case)
    printed = FirstLine()
    results, error, text = [], "", ""
    try:
        with contextlib.redirect_stdout(printed), np.errstate(all="ignore"):
            results = [function(*args, **kwargs)]
        results += [kwargs["kv"]] if "kv" in kwargs else kwargs.get("cache", [])
    except (KeyboardInterrupt, WaitsError):
        raise
    except BaseException as exception:  # including SystemExit
        error, text = type(exception).__name__, describe(exception, namespace)
    after, before = ({**dict(zip(names, call[0])), **call[1]} for call in ((args, kwargs), case))
    changed = [name for name in names if name in after and not unchanged(after[name], before[name])]
    return Outcome(results, error, text, changed, printed.getvalue())


def unchanged(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(unchanged(a[key], b[key]) for key in a)
    if isinstance(a, list) and a and isinstance(a[0], (dict, np.ndarray)):
        return len(a) == len(b) and all(map(unchanged, a, b))
    return np.array_equal(a, b)


def describe(exception, namespace):
    """An exception in one line, followed by the innermost line of the reader's file in its traceback."""
    entry = exception.__traceback__
    number, line = None, ""
    while entry is not None:
        if entry.tb_frame.f_globals is namespace:
            number = entry.tb_lineno
            line = linecache.getline(entry.tb_frame.f_code.co_filename, number).strip()
        entry = entry.tb_next
    message = f"{type(exception).__name__}: {str(exception).strip() or 'no message'}".splitlines()[0]
    return f"{f'Line {number}' if number else 'It'} raises {message}." + (f"\n    {line}" if line else "")


def close(a, b):
    """Whether two results are equal: ids exactly, arrays up to rounding, of any float dtype."""
    if not isinstance(b, np.ndarray) or not isinstance(a, np.ndarray):
        return type(a) is type(b) and a == b
    size = np.abs(b[np.isfinite(b)]).max(initial=0)
    return a.shape == b.shape and a.dtype.kind == b.dtype.kind and np.allclose(a, b, 2e-5, 2e-5 * size, equal_nan=True)


def same(a, b):
    """Whether two Outcomes have the same error or the same results."""
    return a.error == b.error and len(a.results) == len(b.results) and all(map(close, a.results, b.results))


# --- finding and describing the mistake ---


def find(name, cases, outcomes, right, mine, wrap):
    """The one or two mistakes that reproduce the outcomes of the reader's function on all inputs, or [].

    right: the correct outcomes. mine: the functions that the reader has written. wrap: see form().
    """
    if all(outcome.error or same(outcome, correct) for outcome, correct in zip(outcomes, right)):
        return []  # an error alone could come from many mistakes
    own = made_in(name, without=mine)
    for made in itertools.chain(((change,) for change in made_in(name)), itertools.combinations(own, 2)):
        functions = variant(*made)
        if functions and all(map(alike, outcomes, right, runs(wrap(functions[name]), cases))):
            return [mistake for mistake, _ in made]
    return []


def alike(outcome, right, mistaken):
    """Whether a mistake gives the reader's outcome or, if the reader's function raised an error, a wrong one."""
    return same(outcome, mistaken) or (outcome.error != "" and not same(right, mistaken))


def runs(function, cases):
    return (attempt(function, case) for case in cases)


def difference(name, case, outcome, right):
    """The first difference between an Outcome and the correct one."""
    if outcome.error:
        return outcome.text
    for i, (a, b) in enumerate(zip(outcome.results, right.results)):
        if a is None:
            return "It returns None: is a return missing?"
        if type(a) is not type(b):
            return f"It returns {described(a)}; it should return {described(b)}."
        if isinstance(a, list) and a != b:
            return f"It returns {a}\n    but should return {b}\n    for {shown(name, case)}"
        if isinstance(a, np.ndarray) and a.shape != b.shape:
            return f"It returns {described(a)}; it should return {described(b)}, for {shown(name, case)}"
        if not close(a, b):
            wrong = ~np.isclose(a, b, 2e-5, 2e-5 * np.abs(b[np.isfinite(b)]).max(initial=0), equal_nan=True)
            at = tuple(map(int, np.argwhere(wrong)[0])) if wrong.any() else (0,) * a.ndim
            entry = f"After the call, entry {list(at)} of cache {i - 1}" if i else f"{name}(...){list(at)}"
            return f"{entry} is {a[at]:.6g} but should be {b[at]:.6g}, for {shown(name, case)}"
    return ""


def described(value):
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of length {len(value)}"
    return f"a value of type {type(value).__name__}"


def shown(name, case):
    """The arguments of a call: in full if they are short, otherwise their shapes."""
    texts = []
    for argument, value in [*zip(inspect.signature(RIGHT[name]).parameters, case[0]), *case[1].items()]:
        if isinstance(value, np.ndarray) and value.size <= 16:
            texts.append(f"{argument} = {(np.round(value.astype(float), 4) + 0).tolist()}")  # + 0: no -0.0
        elif isinstance(value, (int, list)) and len(str(value)) < 50:
            texts.append(f"{argument} = {value}")
        elif isinstance(value, np.ndarray):
            texts.append(f"{argument}.shape = {value.shape}")
    return ", ".join(texts)


def remarks(name, function, case, outcome, right):
    """Yields (name, text) for what the numbers themselves reveal when no known mistake explains them."""
    a, b = (one.results[0] if one.results else None for one in (outcome, right))
    if not same(attempt(function, case), outcome):
        yield "random", "Two calls with the same arguments give different results: it is random or keeps some state."
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray) or a.dtype.kind != "f":
        return
    if np.isnan(a).any() and not np.isnan(b).any():
        yield "nan", "The result contains nan, which comes from 0 / 0, inf - inf or 0 * inf."
    if a.shape == b.shape[::-1] and a.ndim == 2 and close(a.T, b):
        yield "transposed", "The result is right, but transposed."
    if a.shape != b.shape:
        return
    x = case[0][0]
    error = a - b
    if (b != 0).all() and np.ptp(a / b) < 1e-4 * abs((a / b).mean()):
        yield "factor", f"All numbers are {(a / b).mean():.4g} times what they should be."
    elif np.ptp(error) < 1e-4 * abs(error.mean()):
        yield "offset", f"All numbers are off by {error.mean():+.4g}."
    elif isinstance(x, np.ndarray) and x.shape == b.shape and close(error, x):
        yield "extra x", "The difference is x itself: x is added one time too many."
    elif isinstance(x, np.ndarray) and x.shape == b.shape and close(error, -x):
        yield "missing x", "The difference is x itself: x is missing once."
    if name in ("mha", "transformer_block", "hidden_states", "gpt2") and len(x) > 1:
        if isinstance(x, list):
            other = x[:-1] + [0]
        else:
            other = np.concatenate([x[:-1], x[-1:] + np.arange(1, x.shape[1] + 1, dtype=x.dtype)])
        later = attempt(function, ((other,), case[1])).results
        if later and not close(later[0][:-1], a[:-1]):
            yield "looks ahead", "Earlier positions change when the last token does, so they see it: check the mask."


def judge(name, function, cases, namespace, mine, wrap):
    """The Finding for a function that takes the right arguments."""
    names = [argument for argument in inspect.signature(RIGHT[name]).parameters if argument not in ("kv", "cache")]
    outcomes = [attempt(function, case, namespace, names) for case in cases]
    right = [attempt(wrap(RIGHT[name]), case) for case in cases]
    if is_unwritten(function, outcomes[0]):
        return Finding(name, "to do")
    wrong = [i for i, pair in enumerate(zip(outcomes, right)) if not same(*pair)]
    report = []  # (name of a mistake or "", text)
    if wrong:
        report = [(one.name, one.message) for one in find(name, cases, outcomes, right, mine, wrap)]
        i = wrong[0]
        if not report and not outcomes[i].error:
            report += remarks(name, function, cases[i], outcomes[i], right[i])
        unnamed = "" if report else outcomes[i].error or "unknown"
        report.append((unnamed, difference(name, cases[i], outcomes[i], right[i])))
    elif any(
        a.dtype != b.dtype
        for outcome, correct in zip(outcomes, right)
        for a, b in zip(outcome.results, correct.results)
        if isinstance(a, np.ndarray)
    ):
        report = [("float64", FLOAT64)]
    for argument in {argument: None for outcome in outcomes for argument in outcome.changed}:
        report.append(("modifies its arguments", (APPENDED if argument == "inputs" else CHANGED).format(argument)))
    if printed := next((text for outcome in outcomes if (text := outcome.printed.strip())), ""):
        report.append(("", f"It prints: {printed.splitlines()[0][:80]}"))
    names = [mistake for mistake, _ in report if mistake]
    return Finding(name, "wrong" if names else "right", names, "\n".join(text for _, text in report))


def is_unwritten(function, outcome):
    """Whether a function is still to be written: its body is `...`, or it raises NotImplementedError."""
    code = getattr(getattr(function, "__code__", None), "co_code", b"1" * 99)
    short = len(code) <= len((lambda: None).__code__.co_code)
    return outcome.error == "NotImplementedError" or (bool(outcome.results) and outcome.results[0] is None and short)


# --- the signatures that a function may have ---


def fits(function, case):
    try:
        inspect.signature(function).bind(*case[0], **case[1])
    except TypeError:
        return False
    except ValueError:  # a NumPy function, which has no signature
        pass
    return True


def form(name, function, cases):
    """(cases, wrap) for the signature of the reader's function, as the article has more than one form.

    cases: those that it accepts. wrap: makes the correct function take the same arguments. kv, cache and past are
    optional; attention without a mask looks at all keys or makes its own causal mask.
    """
    if name != "attention" or fits(function, cases[0]):
        usual = [case for case in cases if fits(function, case) or not {"kv", "cache"} & case[1].keys()]
        return usual, lambda right: right
    cases = [(case[0][:3], {}) for case in cases if len(case[0][0]) == len(case[0][1])]
    q, k, v = cases[0][0]
    one, other = (attempt(function, ((q, k, y), {})).results for y in (v, np.concatenate([v[:-1], v[-1:] + 1])))
    # under a causal mask, query 0 does not see the last value
    masks = bool(one) and isinstance(one[0], np.ndarray) and one[0].ndim == 2 and close(one[0][0], other[0][0])

    def wrap(right):
        return lambda q, k, v: right(q, k, v, causal(q.shape[-2], k.shape[-2]) if masks else np.float32(0))

    return cases, wrap


def stand_in(name, wrap=lambda right: right):
    """The correct function, to replace one that is wrong, missing or still to do."""
    right = wrap(RIGHT[name])

    def correct(*args, **kwargs):
        if not fits(right, (args, kwargs)):
            raise WaitsError(name)
        return right(*args, **kwargs)

    return correct


def signature_of(name):
    signature = SOURCES[name][4 : SOURCES[name].index(")") + 1]
    return signature.replace(", kv=None, past=0", "").replace(", cache=None, past=0", "")


# --- all functions ---


def check(namespace, cases, only=None, skip=(), before=lambda name: None):
    """Yields a Finding for each function, each before the functions that call it.

    namespace: the globals of the reader's functions; they are modified during the check, then restored.
    cases: inputs(params, n_head) for a whole model, or inputs().
    only: the name of one function; the functions that it calls are checked but not reported.
    skip: names to treat as wrong without calling them. before: called with each name before it is checked.
    """
    mine = {name: namespace[name] for name in RIGHT if callable(namespace.get(name))}
    added = [name for name in RIGHT if name not in namespace]
    needed = list(RIGHT) if only is None else [only, *called_by(only)]
    try:
        namespace.update({name: stand_in(name) for name in added})
        for name in RIGHT:
            if name not in mine:
                finding = Finding(name, "to do")
            elif name in skip or name not in needed:
                namespace[name] = stand_in(name)
                finding = None
            else:
                before(name)
                finding = try_one(name, mine[name], cases[name], namespace, mine)
            if finding and only in (None, name) and not (name == "hidden_states" and name not in mine):
                yield finding
    finally:
        namespace.update(mine)
        for name in added:
            namespace.pop(name, None)


def try_one(name, function, cases, namespace, mine):
    """The Finding for one function; if it is not right, the correct one replaces it."""
    wrap = None
    try:
        cases, wrap = form(name, function, cases)
        if not all(fits(function, case) for case in cases):
            text = (
                f"Its signature is {name}{inspect.signature(function)}; it should be {signature_of(name)}.\n"
                "The names matter: the checkpoint's dictionaries are passed as **ln_1 or **c_fc."
            )
            finding = Finding(name, "wrong", ["arguments"], text)
        else:
            finding = judge(name, function, cases, namespace, mine, wrap)
    except WaitsError as other:
        text = f"It cannot be checked yet: it calls {other}, which has to be right first."
        finding = Finding(name, "waits", ["waits"], text)
    if finding.status != "right":
        namespace[name] = stand_in(name, wrap or (lambda right: right))
    return finding
