"""beyond/interactive.py: the ids of gpt2.generate, only new tokens through the model, and a pseudo-terminal."""

import io
import re
import sys
import time

from conftest import MODELS, QUICK, ROOT, SLOW_MODEL, Terminal, golden
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from beyond import complete, interactive, lookahead, variant
import gpt2
import utils

TEXT = (ROOT / "models" / "shakespeare" / "held_out.txt").read_text("utf-8")[:10_000]
SETTINGS = {"n_tokens_to_generate": 40, "temperature": 0, "top_k": None, "top_p": None, "seed": None}


def remembering(model, guess=False):
    """(the model with a memory, a list of how many tokens each pass sends through it)."""
    rows = []
    counting = variant(model)
    counting.hidden_states = lambda ids, *args: rows.append(len(ids)) or model.hidden_states(ids, *args)
    over = variant(model, hidden_states=interactive.Memory(counting).hidden_states)
    return variant(lookahead, gpt2=over) if guess else over, rows


@pytest.mark.parametrize("guess", [False, True])
@settings(max_examples=30, deadline=None)
@given(st.sampled_from(QUICK), st.data())
def test_texts_that_grow_shrink_and_change(guess, name, data):
    """Whatever is in the memory, the ids are those of gpt2.generate, which has none."""
    params, hparams = MODELS[name]
    model, _ = remembering(gpt2, guess)
    ids = golden.inputs(hparams)[:2].tolist()
    for _ in range(data.draw(st.integers(1, 5))):
        n = data.draw(st.integers(0, min(6, hparams["n_ctx"] - len(ids))))
        args = list(ids), params, hparams["n_head"], n, data.draw(st.sampled_from([0, 1]))
        found = list(model.stream(*args, seed=3))
        assert found == gpt2.generate(*args, seed=3)
        change = data.draw(st.sampled_from(["grow", "type", "cut", "other"]))
        ids = {"grow": ids + found, "type": ids + found + [1, 2], "cut": ids[len(ids) // 2 :], "other": [3, *ids[1:]]}[
            change
        ][: hparams["n_ctx"]]


def test_only_new_tokens_pass_through_the_model():
    params, hparams = MODELS["wide"]
    model, rows = remembering(gpt2)
    ids = golden.inputs(hparams)[:4].tolist()
    ids += model.stream(ids, params, hparams["n_head"], 3)
    assert rows == [4, 1, 1]
    ids += [5, 6]
    ids += model.stream(ids, params, hparams["n_head"], 2)
    assert rows == [4, 1, 1, 3, 1]
    ids += model.stream(ids, params, hparams["n_head"], 2)
    assert rows == [4, 1, 1, 3, 1, 1, 1]
    list(model.stream(ids[2:], params, hparams["n_head"], 1))  # at other positions, all are new
    assert rows[7:] == [len(ids) - 2]


def test_ctrl_c_while_the_model_computes_leaves_a_correct_memory():
    params, hparams = MODELS["wide"]
    memory = interactive.Memory(gpt2)
    model = variant(gpt2, hidden_states=memory.hidden_states)
    ids = golden.inputs(hparams)[:6].tolist()
    list(model.stream(ids, params, hparams["n_head"], 1))

    def interrupted(ids, wte, wpe, blocks, ln_f, n_head, cache, past):
        gpt2.hidden_states(ids, wte, wpe, blocks[:1], ln_f, n_head, cache[:1], past)
        raise KeyboardInterrupt

    memory.model = variant(gpt2)
    memory.model.hidden_states = interrupted
    other = [*ids[:3], 1, 2, 1]
    with pytest.raises(KeyboardInterrupt):
        list(model.stream(other, params, hparams["n_head"], 1))
    memory.model = gpt2
    for inputs in other, ids:
        assert list(model.stream(inputs, params, hparams["n_head"], 3)) == gpt2.generate(
            inputs, params, hparams["n_head"], 3
        )


# --- the context's end ---


def test_the_oldest_text_makes_room_at_a_beginning(encoder):
    for n in range(200, 260, 7):
        ids = encoder.encode(TEXT[n:])[:n]
        kept = interactive.cut(encoder, ids, 200)
        assert kept == ids[-len(kept) :] and 50 <= len(kept) <= 100
        assert re.search(r"(\n|[.!?]['\"]?)$", encoder.decode(ids[: -len(kept)]))
    prose = "He came, he saw 3.14 of them. “Why?” she asked. " * 20
    kept = encoder.decode(interactive.cut(encoder, encoder.encode(prose), 100))
    assert kept.startswith((" He came", " “Why", " she asked"))
    chinese = encoder.encode("他来了，看见了，赢了。" * 20)
    assert encoder.decode(interactive.cut(encoder, chinese, 100)).startswith("他来了")
    for endless in "na " * 300, "中👍🏽" * 100:
        kept = interactive.cut(encoder, encoder.encode(endless), 200)
        assert "\ufffd" not in encoder.decode(kept) and 97 <= len(kept) <= 100


def talk(monkeypatch, lines, *model, **options):
    """What main prints after these lines are typed: (standard output, standard error)."""
    out, err = io.StringIO(), io.StringIO()
    with monkeypatch.context() as patch:
        for name, stream in ("stdin", io.TextIOWrapper(io.BytesIO(lines.encode()))), ("stdout", out), ("stderr", err):
            patch.setattr(sys, name, stream)
        interactive.main(*(model or ["shakespeare"]), **options)
    return out.getvalue(), err.getvalue()


@pytest.fixture
def sessions(monkeypatch):
    """A list of the sessions that are created."""
    made, init = [], interactive.Session.__init__
    monkeypatch.setattr(interactive.Session, "__init__", lambda self, *args: made.append(self) or init(self, *args))
    return made


def test_beyond_the_contexts_end(monkeypatch, short_models_dir):
    """Each continuation is gpt2.generate's for the rest of the text, and the screen shows all of it."""
    calls = []

    def appended(self, ids):
        calls.append((list(self.ids), []))
        for id in ids:
            calls[-1][1].append(id)
            self.ids.append(id)
            yield id

    monkeypatch.setattr(interactive.Session, "appended", appended)
    texts = [TEXT[:120], "", TEXT[5000:5060], "", ""]
    lines = "".join(text.replace("\n", "\\\n") + "\n" for text in texts)
    out, err = talk(monkeypatch, lines, "short", str(short_models_dir), n_tokens_to_generate=15)
    dropped = [int(n) for n in re.findall(r"the context of 64 tokens is full: the oldest (\d+) are dropped", err)]
    assert len(dropped) >= 2 and len(calls) == len(texts)
    encoder, hparams, params = utils.load_encoder_hparams_and_params("short", str(short_models_dir))
    end = encoder.encoder["<|endoftext|>"]
    for inputs, found in calls:
        expected = gpt2.generate(inputs, params, hparams["n_head"], 18, stop=end)
        assert found == expected[: len(found)] and (len(found) >= 15 or found == expected)
        assert len(inputs) + 18 <= 64
    assert out == "".join(encoder.decode(found) + "\n" for _, found in calls)
    for (inputs, found), (after, _), text in zip(calls, calls[1:], texts[1:]):
        whole = [*inputs, *found, *encoder.encode(text)]
        after = after[:-1] if after[-1] == end else after
        assert whole[-len(after) :] == after


# --- what is typed ---


def test_a_text_that_is_typed_in_parts(monkeypatch):
    encoder, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", "models")
    lines = "/n 5\nKING\n/n 0\n of\\\n\\\n/ France\n//\n/n_tok\n\n/new\n/text\n"
    out, err = talk(monkeypatch, lines, temperature=0.0)
    first = encoder.encode("KING")
    second = gpt2.generate(first, params, hparams["n_head"], 5)
    typed = encoder.encode(" of\n\n/ France") + encoder.encode("/")
    third = gpt2.generate(first + second + typed, params, hparams["n_head"], 40)
    assert out == "".join(encoder.decode(ids) + "\n" for ids in (second, third, []))
    assert err == "".join(f"(n_tokens_to_generate is now {n})\n" for n in (5, 0, 40))


def test_settings_and_their_errors(monkeypatch, sessions):
    lines = "/temperature 0.8\n/top_k 3\n/top_p .9\n/seed 1\n/seed\n/top_k None\n/n 9\n"
    talk(monkeypatch, lines, seed=7, top_k=5)
    assert sessions[0].settings == {**SETTINGS, "n_tokens_to_generate": 9, "temperature": 0.8, "top_p": 0.9, "seed": 7}
    _, err = talk(
        monkeypatch, "/temperature -1\n/t 1\n/top_k 1.5\n/n 126\n/\n/quit\n/seed x y\n\udcff\n".replace("\udcff", "é")
    )
    said = [
        "temperature=-1 must",
        "unknown command /t: see /help",
        "top_k=1.5 must",
        "n_tokens_to_generate=126 must be an integer from 0 to 125",
        "unknown command /: see",
        "unknown command /quit",
        "seed='x y' must",
    ]
    assert [line.startswith("error: ") for line in err.splitlines()[:7]] == [True] * 7
    assert all(part in line for part, line in zip(said, err.splitlines()))
    out, _ = talk(monkeypatch, "/help\n")
    assert all(f"/{name} {value}" in out for name, value in SETTINGS.items())
    with pytest.raises(ValueError, match="n_tokens_to_generate=200 must be an integer from 0 to 125"):
        talk(monkeypatch, "", n_tokens_to_generate=200)


def test_what_the_docstring_shows(monkeypatch):
    shown = re.search(r"\n\n((?:    .*\n|\n)+)\nWhat you type", interactive.__doc__)[1]
    shown = re.sub("^    ", "", shown, flags=re.M)
    args = shown.splitlines()[0].split()
    shown = shown.partition("\n\n")[2].rstrip("\n") + " "
    screen, found = Terminal(*args[1:]), ""
    for until, line in ("> ", "JULIET:\r"), ("> ", "\\\r"), ("\n  ", "\\\r"), ("\n  ", "ROMEO:\r"), ("> ", "\x04"):
        found += screen.read(until)
        screen.type(line)
    found += screen.read()
    assert screen.process.returncode == 0 and found.rstrip() == shown.rstrip()


KINDS = {"plain": {}, "lookahead": {"lookahead": True}, "all": {"kernels": True, "bits": 8, "lookahead": True}}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(monkeypatch, tmp_path, kind):
    """The text of beyond.complete with the same flags."""
    flags = KINDS[kind] | ({"weights": str(tmp_path / "weights")} if kind == "all" else {})
    out, _ = talk(monkeypatch, "JULIET:\\\nO Romeo\n", n_tokens_to_generate=50, **flags)
    assert out == complete.main("JULIET:\nO Romeo", 50, "shakespeare", **flags) + "\n"


# --- characters of several tokens ---


def session_of(encoder, stream):
    params = {"wpe": range(1024)}
    return interactive.Session(stream, encoder, params, 1, {**SETTINGS, "n_tokens_to_generate": 1})


def test_a_character_is_finished_or_dropped(encoder, capsys):
    ids = encoder.encode("👍🏽 é!")
    session = session_of(encoder, lambda *args: iter(ids))
    session.extend()  # one token is asked for
    assert capsys.readouterr().out == "👍\n" and session.ids == ids[:2]
    for cut in range(1, 5):
        whole = encoder.decode(ids[:cut]).rstrip("\ufffd")

        def interrupted(*args):
            yield from ids[:cut]
            raise KeyboardInterrupt

        session = session_of(encoder, interrupted)
        session.change({**SETTINGS})
        session.extend()
        assert capsys.readouterr().out == whole + "\n" and encoder.decode(session.ids) == whole


# --- at a terminal ---


def test_ctrl_c_stops_the_text_and_not_the_program():
    code = f"{SLOW_MODEL}\nimport cli; from beyond import interactive; cli.run(interactive.main)"
    screen = Terminal("-c", code, "shakespeare", "--n_tokens_to_generate=125", "--temperature=2", "--seed=1")
    screen.read("> ")
    time.sleep(0.5)  # Python waits for a key now; it would notice an earlier Ctrl-C only with the next key
    screen.type("\x03")  # while no text is written, this begins a new line
    screen.read("\n> ")
    screen.type("ING\x01K\r")  # Ctrl-A goes to the line's beginning
    shown = screen.read("\n") + screen.read(" ")  # what was typed, and the beginning of what the model writes
    screen.type("\x03")
    shown += screen.read("\n> ")
    assert "^C" in shown
    text = shown.partition("\n")[2].replace("^C", "").removesuffix("\n> ")
    screen.type("/text\r")
    assert screen.read("\n> ") == f"/text\nKING{text}\n> " and 0 < len(text) < 200  # exactly the text that was shown
    screen.type("/n 3\r")
    screen.read("\n> ")
    screen.type("\r")
    assert 4 < len(screen.read("\n> ")) < 40  # and it continues
    screen.type("\x1b[A\r")  # up, to the last line that was not empty
    assert "(n_tokens_to_generate is now 3)" in screen.read("\n> ")
    screen.type("\x04")
    screen.read()
    assert screen.process.returncode == 0
