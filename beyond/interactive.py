r"""A text that grows: type, the model goes on, type again. Model and text stay in memory.

    python -m beyond.interactive --model_size shakespeare --temperature 0.8 --top_p 0.9 --seed 4

    (shakespeare, a context of 256 tokens. Type a text, or /help; Ctrl-D ends)
    > JULIET:

    O heaven!
    (here the model ends its text: after Enter it begins another)
    > \
      \
      ROMEO:

    O Juliet, to do this eye, so long,
    Being in thy heads, even thou hast with her,
    Or else thou canst be
    >

What is typed joins the text as it is, and the model goes on from there; Enter alone lets it go on, Ctrl-C stops it,
Ctrl-D ends the program. /help says what else there is.

gpt2.stream sends the whole text through the model each time it is called. Here its hidden_states is another one, which
remembers the keys and values of the text before, so that only what is new passes through the model. That holds for
every chapter that is made over a gpt2: kernels, quantized weights, lookahead.

Where the context is full, the oldest half of the text goes. What is left then stands at other positions, so all of it
passes through the model once more.
"""

import itertools
import operator
import re
import sys

import numpy as np

from beyond import variant
from beyond.fast import flags
import cli
from encoder import to_bytes

HELP = r"""A text goes on from where it is; Enter alone: the model goes on. Ctrl-C stops it, Ctrl-D ends the program.
A line that ends in \ is continued in the next one, so \ alone begins a new line; // begins a text with a /.

    /new     begins another text
    /text    shows what the model has of this one
    /help    shows this

The settings, as they are now. Without a value, one is again what it was at the start; a name's beginning will do.
"""
ROOM = 3  # tokens beyond those asked for, as a character may take four
BEGINS = re.compile(r'\n\0[^\n]|[.!?…]["\'”’)]*\0\s|[。！？][”」』）]*\0')  # a line or a sentence, after the \0


class Memory:
    """hidden_states with a cache that outlasts a text: what it has of the next one's beginning is used again."""

    def __init__(self, model):
        self.model, self.ids, self.cache = model, [], None

    def hidden_states(self, inputs, wte, wpe, blocks, ln_f, n_head, cache=None, past=0):  # as gpt2.hidden_states
        if self.cache is None:
            shape = 2, n_head, len(wpe), wte.shape[1] // n_head
            self.cache = [np.empty(shape, np.float32) for _ in blocks]
        ids = self.ids[:past] + list(inputs)
        # where a text begins, all that is common can stay, but for the last token, whose row is asked for
        same = past or min(sum(itertools.takewhile(bool, map(operator.eq, self.ids, ids))), len(ids) - 1)
        self.ids = ids[:same]  # so it is true after Ctrl-C, too
        x = self.model.hidden_states(ids[same:], wte, wpe, blocks, ln_f, n_head, self.cache, same)
        self.ids = ids
        return x


def cut(encoder, ids, n_ctx):  # list of int -> list of int
    """The end of ids, from a quarter to half of n_ctx, from a line's or sentence's beginning if there is one."""
    first, last = len(ids) - n_ctx // 2, len(ids) - n_ctx // 4
    for i in range(first, last):
        if BEGINS.search(f"{encoder.decode(ids[max(0, i - 3) : i])}\0{encoder.decode(ids[i : i + 1])}"):
            return ids[i:]
    whole = (i for i in range(first, last) if to_bytes(encoder.decoder[ids[i]])[0] & 0xC0 != 0x80)
    return ids[next(whole, first) :]  # not from within a character


class Session:
    """The text so far, as ids, and how it goes on. stream: gpt2.stream or one like it."""

    def __init__(self, stream, encoder, params, n_head, settings):
        self.stream, self.encoder, self.params, self.n_head = stream, encoder, params, n_head
        self.n_ctx, self.end = len(params["wpe"]), encoder.encoder.get("<|endoftext|>")
        self.ids, self.ended, self.defaults = [], False, settings
        self.change(settings)

    def change(self, settings):
        """Takes settings, of n_tokens_to_generate, temperature, top_k, top_p and seed. Raises ValueError."""
        cli.check("n_tokens_to_generate", settings["n_tokens_to_generate"], 0, self.n_ctx // 2 - ROOM)
        cli.check_options(**settings)
        self.settings = settings

    def add(self, text):
        """Joins a text to the one so far. Raises ValueError for one that the vocabulary cannot spell."""
        if not self.ids:
            self.ids = cli.encode_prompt(self.encoder, text)
        else:
            self.ids += self.encoder.encode(text) or [self.end] * self.ended
        self.ended = False

    def go_on(self):
        """Prints what the model adds, as it comes. With Ctrl-C, the text ends with what was printed."""
        n, *options = self.settings.values()
        if n == 0:
            return
        if len(self.ids) + n + ROOM > self.n_ctx:
            n_before, self.ids = len(self.ids), cut(self.encoder, self.ids, self.n_ctx)
            note(
                f"the context of {self.n_ctx} tokens is full: the oldest {n_before - len(self.ids)} are left out, and "
                f"the text now begins with {self.encoder.decode(self.ids[:12])!r}"
            )
        begin, shown = len(self.ids), ""
        ids = self.stream(list(self.ids), self.params, self.n_head, n + ROOM, *options, self.end)
        try:
            for piece in self.encoder.decode_stream(self.taken(ids)):
                shown += piece
                print(piece, end="", flush=True)
                if len(self.ids) - begin >= n and shown == self.encoder.decode(self.ids[begin:]):
                    break
            else:
                self.ended = len(self.ids) < begin + n + ROOM
        except KeyboardInterrupt:
            pass
        finally:
            print(flush=True)
            while len(self.encoder.decode(self.ids[begin:])) > len(shown):  # half a character
                self.ids.pop()
        if self.ended:
            note("here the model ends its text: after Enter it begins another")

    def taken(self, ids):
        for id in ids:
            self.ids.append(id)
            yield id

    def obey(self, command):
        """Does what a line that begins with / says. Raises ValueError for what it cannot."""
        from fire.parser import DefaultParseValue

        name, _, value = command[1:].partition(" ")
        if name == "new":
            self.ids = []
        elif name == "text":
            print(self.encoder.decode(self.ids))
        elif name in ("help", "h", "?"):
            print(HELP)
            for name, value in self.settings.items():
                print(f"    /{f'{name} {value}':26} {re.split('[;.] ', cli.HELP[name])[0]}")
        else:
            names = [one for one in self.settings if name and one.startswith(name)]
            if len(names) != 1:
                raise ValueError(f"there is no /{name}: see /help")
            value = DefaultParseValue(value.strip()) if value.strip() else self.defaults[names[0]]
            self.change({**self.settings, names[0]: value})
            note(f"{names[0]} is now {value}")


def note(text):
    print(f"({text})", file=sys.stderr, flush=True)


def read_text():
    """What is typed: one line, or more, each but the last with a \\ at its end. Raises EOFError."""
    prompt = "> " if sys.stdin.isatty() else ""
    lines = [input(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1:] = [lines[-1][:-1], input(prompt and "  ")]
    return "\n".join(lines)


def main(model_size="124M", models_dir="models", n_tokens_to_generate=40, temperature=0, top_k: int = None,
         top_p: float = None, seed: int = None, *, kernels=False, bits: int = None, lookahead=False,
         weights: str = None):  # fmt: skip
    """Goes on with what you type, again and again; /help, typed there, says how.

    Args:
        n_tokens_to_generate: How many tokens to add each time, from 0 to nearly half of the context.
    """
    if sys.stdin is None:
        raise ValueError("the standard input is closed, so nothing can be typed")
    model, encoder, hparams, params = flags.load(model_size, models_dir, kernels, bits, weights)
    model = variant(model, hidden_states=Memory(model).hidden_states)
    if lookahead:
        model = flags.with_lookahead(model)
    settings = {"n_tokens_to_generate": n_tokens_to_generate, "temperature": temperature, "top_k": top_k,
                "top_p": top_p, "seed": seed}  # fmt: skip
    session = Session(model.stream, encoder, params, hparams["n_head"], settings)
    sys.stdin.reconfigure(errors="surrogateescape")
    try:
        import readline  # noqa: F401  gives input() the arrow keys and a history; on Windows the console has both
    except ImportError:
        pass
    if sys.stdin.isatty():
        note(f"{model_size}, a context of {session.n_ctx} tokens. Type a text, or /help; Ctrl-D ends")
    while True:
        try:
            text = read_text()
            if text.startswith("/") and not text.startswith("//"):
                session.obey(text)
            else:
                session.add(re.sub("^//", "/", text))
                session.go_on()
        except KeyboardInterrupt:
            print(flush=True)
        except ValueError as error:
            print("error:", error, file=sys.stderr, flush=True)
        except EOFError:
            return print() if sys.stdin.isatty() else None


if __name__ == "__main__":
    cli.run(main)
