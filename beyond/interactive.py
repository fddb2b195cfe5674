r"""A text that grows: you type, the model continues, you type again. Model and text stay in memory.

    python -m beyond.interactive --model_size shakespeare --temperature 0.8 --top_p 0.9 --seed 4

    (shakespeare, a context of 256 tokens. Type a text, or /help; Ctrl-D ends)
    > JULIET:

    O heaven!
    (the model has ended its text; after Enter it begins another)
    > \
      \
      ROMEO:

    O Juliet, to do this eye, so long,
    Being in thy heads, even thou hast with her,
    Or else thou canst be
    >

What you type is appended to the text as it is, and the model continues from there. Enter alone lets it write more,
Ctrl-C stops it, Ctrl-D ends the program, and /help lists the rest.

gpt2.stream sends the whole text through the model each time it is called. Here hidden_states is replaced by one that
keeps the text's keys and values, so that only new tokens pass through the model. This works for every chapter built on
gpt2: kernels, quantized weights, lookahead.

When the context is full, the oldest half of the text is dropped. The rest then has new positions, so all of it passes
through the model again.
"""

import itertools
import operator
import re
import sys

from beyond import variant
from beyond.fast import flags
import cli
from encoder import to_bytes

HELP = r"""The model continues the text that you type; Enter alone lets it go further. Ctrl-C stops it, Ctrl-D ends the
program. After a \ at its end, a line continues on the next one, so \ alone is a line break; // begins a text with a /.

    /new     begins another text
    /text    shows the text as far as the model still has it
    /help    shows this

The settings and their values. A name without a value restores the initial one; names can be abbreviated.
"""
ROOM = 3  # extra tokens, to finish the last character, which may take four
BEGINS = re.compile(r'\n\0[^\n]|[.!?…]["\'”’)]*\0\s|[。！？][”」』）]*\0')  # \0 is where a line or sentence begins


class Memory:
    """hidden_states with a cache that is reused for the next text, as far as that begins the same (prefix caching)."""

    def __init__(self, model):
        self.model, self.ids, self.cache = model, [], None

    def hidden_states(self, inputs, wte, wpe, blocks, ln_f, n_head, cache=None, past=0):  # as gpt2.hidden_states
        if self.cache is None:
            self.cache = self.model.new_cache({"wte": wte, "blocks": blocks}, n_head, len(wpe))
        ids = self.ids[:past] + list(inputs)
        # at the start of a text, keep the common beginning, except for the last token, whose output is needed
        same = past or min(sum(itertools.takewhile(bool, map(operator.eq, self.ids, ids))), len(ids) - 1)
        self.ids = ids[:same]  # set first, so that ids and cache agree after Ctrl-C as well
        x = self.model.hidden_states(ids[same:], wte, wpe, blocks, ln_f, n_head, self.cache, same)
        self.ids = ids
        return x


def cut(encoder, ids, n_ctx):  # list of int -> list of int
    """The end of ids, a quarter to half of n_ctx long, from the start of a line or sentence if possible."""
    first, last = len(ids) - n_ctx // 2, len(ids) - n_ctx // 4
    for i in range(first, last):
        if BEGINS.search(f"{encoder.decode(ids[max(0, i - 3) : i])}\0{encoder.decode(ids[i : i + 1])}"):
            return ids[i:]
    starts = (i for i in range(first, last) if to_bytes(encoder.decoder[ids[i]])[0] & 0xC0 != 0x80)  # of a character
    return ids[next(starts, first) :]


class Session:
    """The text so far, as ids, and the settings. stream: gpt2.stream or an equivalent."""

    def __init__(self, stream, encoder, params, n_head, settings):
        self.stream, self.encoder, self.params, self.n_head = stream, encoder, params, n_head
        self.n_ctx, self.end = len(params["wpe"]), encoder.encoder.get("<|endoftext|>")
        self.ids, self.ended, self.defaults = [], False, settings
        self.change(settings)

    def change(self, settings):
        """Sets all of n_tokens_to_generate, temperature, top_k, top_p and seed. Raises ValueError."""
        cli.check("n_tokens_to_generate", settings["n_tokens_to_generate"], 0, self.n_ctx // 2 - ROOM)
        cli.check_options(**settings)
        self.settings = settings

    def add(self, text):
        """Appends to the text. Raises ValueError for characters that the vocabulary lacks."""
        if not self.ids:
            self.ids = cli.encode_prompt(self.encoder, text)
        else:
            self.ids += self.encoder.encode(text) or [self.end] * self.ended
        self.ended = False

    def extend(self):
        """Lets the model extend the text, printed piece by piece. After Ctrl-C, the text ends where the output does."""
        n, *options = self.settings.values()
        if n == 0:
            return
        if len(self.ids) + n + ROOM > self.n_ctx:
            kept = cut(self.encoder, self.ids, self.n_ctx)
            note(
                f"the context of {self.n_ctx} tokens is full: the oldest {len(self.ids) - len(kept)} are dropped, and "
                f"the text now begins with {self.encoder.decode(kept[:12])!r}"
            )
            self.ids = kept
        begin = len(self.ids)
        shown = ""
        ids = self.stream(list(self.ids), self.params, self.n_head, n + ROOM, *options, self.end)
        try:
            for piece in self.encoder.decode_stream(self.appended(ids)):
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
            while len(self.encoder.decode(self.ids[begin:])) > len(shown):  # an incomplete character
                self.ids.pop()
        if self.ended:
            note("the model has ended its text; after Enter it begins another")

    def appended(self, ids):
        for id in ids:
            self.ids.append(id)
            yield id

    def obey(self, command):
        """Carries out a line that begins with /. Raises ValueError for an unknown name or a wrong value."""
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
                raise ValueError(f"unknown command /{name}: see /help")
            value = DefaultParseValue(value.strip()) if value.strip() else self.defaults[names[0]]
            self.change({**self.settings, names[0]: value})
            note(f"{names[0]} is now {value}")


def note(text):
    print(f"({text})", file=sys.stderr, flush=True)


def read_text():
    """The text typed: one line, or several, of which all but the last end with a \\. Raises EOFError."""
    prompt = "> " if sys.stdin.isatty() else ""
    lines = [input(prompt)]
    while lines[-1].endswith("\\"):
        lines[-1:] = [lines[-1][:-1], input(prompt and "  ")]
    return "\n".join(lines)


def main(model_size="124M", models_dir="models", n_tokens_to_generate=40, temperature=0, top_k: int = None,
         top_p: float = None, seed: int = None, *, kernels=False, bits: int = None, lookahead=False,
         weights: str = None):  # fmt: skip
    """Continues what you type, again and again; type /help for how.

    Args:
        n_tokens_to_generate: How many tokens to add each time, from 0 to nearly half of the context.
    """
    if sys.stdin is None:
        raise ValueError("standard input is closed, so nothing can be typed")
    model, encoder, hparams, params = flags.load(model_size, models_dir, kernels, bits, weights)
    model = variant(model, hidden_states=Memory(model).hidden_states)
    if lookahead:
        model = flags.with_lookahead(model)
    settings = {"n_tokens_to_generate": n_tokens_to_generate, "temperature": temperature, "top_k": top_k,
                "top_p": top_p, "seed": seed}  # fmt: skip
    session = Session(model.stream, encoder, params, hparams["n_head"], settings)
    sys.stdin.reconfigure(errors="surrogateescape")
    try:
        import readline  # noqa: F401  gives input() arrow keys and a history; on Windows the console has both
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
                session.extend()
        except KeyboardInterrupt:
            print(flush=True)
        except ValueError as error:
            print("error:", error, file=sys.stderr, flush=True)
        except EOFError:
            return print() if sys.stdin.isatty() else None


if __name__ == "__main__":
    cli.run(main)
