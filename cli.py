"""What all commands share: arguments, --help, checks, one-line errors, the prompt, and the printed completion.

    if __name__ == "__main__":
        run(main)

turns a function into a command. Its parameters are the flags, and --help prints its docstring. An argument stays a
string, as typed, if its parameter is annotated as str, has a string as its default, or has neither annotation nor
default; a parameter whose default is True or False is a switch; all other arguments are parsed as Python literals.
"""

import contextlib
import difflib
import functools
import inspect
import io
import math
import os
import re
import sys

import numpy as np

from utils import VERSION

HELP = {  # what --help prints about flags that several commands share; the rest is in the docstring of each main
    "prompt": 'The text to continue. "-" reads it from standard input, as is the default for a pipe or a file; '
    '"" starts from nothing. If it begins with a dash, write --prompt="- like this".',
    "n_tokens_to_generate": "How many tokens to add, 0 or more; together with the prompt at most n_ctx (1024).",
    "model_size": "124M, 355M, 774M, 1558M (downloaded at first use: 0.5 to 6.2 GB), shakespeare or another folder in "
    "models_dir.",
    "models_dir": "The folder that holds the models; by default the one that comes with this program.",
    "temperature": "0 always takes the most probable token; higher values make the output more random.",
    "top_k": "At a temperature above 0, samples only from the k most probable tokens, 1 or more. By default from all.",
    "top_p": "At a temperature above 0, samples from the smallest set of tokens whose probabilities sum to at least p, "
    "0 to 1. By default all are kept.",
    "seed": "At a temperature above 0, a seed, 0 or more, makes the text repeatable. By default it differs each time.",
}

RENAMED = {}  # {a flag's old name: its new one}, for "did you mean"

# --- checks ---


def shortened(value):
    """A value as an error message shows it: in full, unless it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of more than 4300 digits
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text)} characters)"


def check(name, value, low, high=math.inf, hint=""):
    """Raises ValueError unless the value is a number from low to high, an integer if low is an int."""
    kinds, kind = ((int, np.integer), "an integer") if type(low) is int else ((int, float, np.number), "a number")
    if not isinstance(value, kinds) or isinstance(value, (bool, np.bool_)) or not low <= value <= high:
        limits = f"of at least {low:g}" if high in (math.inf, sys.float_info.max) else f"from {low:g} to {high:g}"
        limits = f"from {low} to {high}" if type(high) is int else limits
        raise ValueError(f"{name}={shortened(value)} must be {kind} {limits}{hint and '; ' + hint}")


def check_options(n_tokens_to_generate, temperature=0, top_k=None, top_p=None, seed=None):
    """Raises ValueError for an option of generate that is out of range, naming the range."""
    check("n_tokens_to_generate", n_tokens_to_generate, 0, hint="a prompt of several words needs quotes")
    check("temperature", temperature, 0.0, sys.float_info.max, "0 always takes the most probable token")
    if top_k is not None:
        check("top_k", top_k, 1, hint="leave it out to keep all tokens")
    if top_p is not None:
        check("top_p", top_p, 0.0, 1.0, "leave it out to keep all tokens")
    if seed is not None:
        check("seed", seed, 0, hint="leave it out for a different text each time")


def check_inputs(inputs, params, n_tokens_to_generate, *options):
    """Raises ValueError as check_options does, or if inputs are not ids or leave too little room in n_ctx."""
    check_options(n_tokens_to_generate, *options)
    (n_ctx, _), (n_vocab, _), n = params["wpe"].shape, params["wte"].shape, len(inputs)
    if (total := n + n_tokens_to_generate) > n_ctx:
        way_out = f"ask for at most {n_ctx - n}" if n < n_ctx else f"shorten the prompt by at least {total - n_ctx}"
        raise ValueError(
            f"a prompt of {n} tokens and n_tokens_to_generate={shortened(n_tokens_to_generate)} make "
            f"{shortened(total)}, but the model's context is {n_ctx}: {way_out}"
        )
    if n == 0 or not all(isinstance(id, (int, np.integer)) and 0 <= id < n_vocab for id in inputs):
        raise ValueError(f"inputs must be one or more token ids from 0 to {n_vocab - 1}")


def check_numbers(array):
    """Returns the array, weights or a model's output. Raises ValueError if it contains NaN."""
    if np.isnan(array).any():
        raise ValueError("the model's weights are damaged: they produce NaN")
    return array


# --- the prompt and the completion ---


def read_prompt(prompt):
    """The prompt; "-" stands for standard input, and so does None unless that is a terminal.

    Removes the final newline, as a shell's $(...) does, and the byte-order mark that some editors write first.
    Bytes that are not UTF-8 become lone surrogates.
    """
    if prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError('no prompt: give a text in quotes, - to read standard input, or "" to start from nothing')
    if prompt not in (None, "-"):
        return str(prompt)
    if sys.stdin is None:
        raise ValueError("standard input is closed, so there is no prompt: give a text in quotes")
    text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


def encode_prompt(encoder, prompt):
    """The ids of a prompt, at least one: an empty prompt becomes <|endoftext|>, which separates training documents.

    Raises ValueError for an empty prompt if the vocabulary does not have <|endoftext|>.
    """
    ids = encoder.encode(prompt) or [encoder.encoder.get("<|endoftext|>")]
    if ids == [None]:
        raise ValueError("the prompt is empty, and the vocabulary has no <|endoftext|> to start from: give a text")
    return ids


class Shown(str):
    """A text that has already been printed."""


def show(pieces, n_tokens):
    """Joins the pieces of a text, one piece per token, at most n_tokens.

    If standard output is a terminal, prints each piece as it is generated, ends the line at the end or at Ctrl-C, and
    returns Shown, so that run does not print it again. Otherwise shows a progress bar on standard error.
    """
    if sys.stdout is None or not sys.stdout.isatty():
        from tqdm import tqdm

        return "".join(tqdm(pieces, "generating", n_tokens, leave=False, disable=None))
    text = ""
    try:
        for piece in pieces:
            text += piece
            print(piece, end="", flush=True)
    finally:
        if text:
            print(flush=True)
    return Shown(text)


# --- a function as a command ---


def run(main, help=None):
    """Runs main as a command: prints its result, if there is one, or one line that begins "error:".

    main: a function, or a dict of functions keyed by the word that selects one. It raises ValueError, OSError or
    MemoryError for errors that the user can fix: the exit status is then 1; after Ctrl-C it is 130.
    help: {flag: text} for the flags that neither the docstring of main nor HELP describes.
    """
    open_missing_streams()
    try:
        if sys.version_info < (3, 10):
            raise ValueError(f"this is Python {sys.version.split()[0]}, but PicoGPT needs Python 3.10 or newer")
        if isinstance(main, dict) and (main := chosen(main)) is None:
            return
        if "--version" in sys.argv[1:]:
            return print(f"PicoGPT {VERSION}")
        if {"-h", "--help"} & set(sys.argv[1:]):
            return print(help_of(main, help or {}))
        args, kwargs = parse(main)
        if sys.stdout is None:
            raise OSError("standard output is closed, so there is nowhere to print to")
        sys.stdout.reconfigure(errors="replace")  # characters missing from the terminal's encoding become "?"
        with np.errstate(all="ignore"):  # checks of our own find infinities and NaN
            result = main(*args, **kwargs)
        if result is not None and not isinstance(result, Shown):
            print(result, flush=True)
        warn_of_unused(main, args, kwargs)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the program that read our output has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail
        sys.exit(141)
    except MemoryError:
        fail("out of memory: use a smaller model or less input")
    except (ValueError, OSError) as error:
        message = getattr(error, "strerror", None) or str(error)
        fail(message + (f": {error.filename}" if getattr(error, "filename", None) else ""))


def open_missing_streams():
    """Opens the standard streams that are closed; otherwise the next file opened would get their descriptor."""
    for fd in 0, 1, 2:
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stderr = sys.stderr or open(os.devnull, "w")


def fail(message):
    """Prints the message as one line and exits with status 1."""
    print("error:", re.sub(r"(\S{120})\S{120,}", r"\1...", " ".join(message.split())), file=sys.stderr)
    sys.exit(1)


def warn_of_unused(main, args, kwargs):
    """Warns about flags that have no effect: without a temperature nothing is sampled."""
    given = inspect.signature(main).bind(*args, **kwargs).arguments
    unused = [f"--{name}" for name in ("top_k", "top_p", "seed") if given.get(name) is not None]
    if "temperature" in inspect.signature(main).parameters and not given.get("temperature") and unused:
        have = "have" if len(unused) > 1 else "has"
        print(f"note: {' and '.join(unused)} {have} no effect without a --temperature above 0", file=sys.stderr)


def chosen(mains):
    """The function that the first argument selects; None after --help. Raises ValueError for any other argument."""
    word = sys.argv.pop(1) if len(sys.argv) > 1 else "nothing"
    if word in ("-h", "--help"):
        for word, main in mains.items():
            print(f"{usage(main, word)}\n    {inspect.getdoc(main).splitlines()[0]}\n")
        return print("Add --help after the word for details.")
    if word not in mains:
        raise ValueError(f"the first word must be {' or '.join(mains)}, not {word}; see {[*mains][0]} --help")
    sys.argv[0] += f" {word}"
    return mains[word]


# --- arguments ---


def is_text(parameter):
    """Whether an argument stays a string, as typed; fire would turn 1e3 into 1000.0."""
    if parameter.annotation is not parameter.empty:
        return parameter.annotation is str
    return parameter.default is parameter.empty or isinstance(parameter.default, str)


def is_switch(parameter):
    return parameter.annotation is parameter.empty and isinstance(parameter.default, bool)


def parse(main):
    """(args, kwargs) for main, which fire parses from sys.argv. The message of a ValueError suggests a correction."""
    import fire
    from fire.decorators import SetParseFn
    from fire.parser import DefaultParseValue

    parameters, argv = inspect.signature(main).parameters, [expand_home(arg) for arg in sys.argv[1:]]
    check_flags(parameters, argv)
    calls, messages = [], io.StringIO()

    @functools.wraps(main)
    def bind(*args, **kwargs):  # main itself runs later, so that typos are reported before anything is computed
        calls.append((args, kwargs))

    texts = [one.name for one in parameters.values() if is_text(one)]
    others = [name for name in parameters if name not in texts]
    bind = SetParseFn(DefaultParseValue, *others)(bind) if others else bind
    try:
        with contextlib.redirect_stderr(messages):
            # fire's separator is "-", which is a prompt here; SetParseFn without names is for the arguments after *
            fire.Fire(SetParseFn(str)(SetParseFn(str, *texts)(bind)), [*argv, "--", "--separator=\0"])
    except SystemExit:
        message = messages.getvalue().splitlines()[0].removeprefix("ERROR: ")
        if message.startswith("Could not consume arg: "):
            message = f"one argument too many: {message.partition(': ')[2]}; a text of several words needs quotes"
        elif "required argument" in message:
            message = f"{' and '.join(re.findall(r'[a-z_]+', message.partition(': ')[2]))} is missing"
        raise ValueError(f"{message}; see --help") from None
    for name, value in inspect.signature(main).bind(*calls[0][0], **calls[0][1]).arguments.items():
        if is_switch(parameters[name]) and not isinstance(value, bool):
            raise ValueError(f"{name}={shortened(value)} must be True or False: write --{name} or --{name}=False")
    return calls[0]


def check_flags(parameters, argv):
    """Raises ValueError for a flag that main does not have, and for a text flag without a value."""
    for arg, following in zip(argv, [*argv[1:], "--"]):
        if not (found := re.match(r"--?(?=[a-zA-Z])([\w-]+)(=|$)", arg)) or (arg[1] != "-" and len(found[1]) > 1):
            continue
        name = found[1].replace("-", "_")
        sought = RENAMED.get(name, name)
        meant = [one for one in parameters if one.startswith(sought)] or [one for one in parameters if sought in one]
        meant = meant or difflib.get_close_matches(sought, parameters, 3, 0.5)
        if name in parameters or isinstance(getattr(parameters.get(name[2:]), "default", None), bool):  # --noFLAG
            meant = [name]
        elif arg[1] == "-" or len(meant) != 1:  # fire takes one letter if it can only mean one flag
            hint = f"did you mean {' or '.join(f'--{one}' for one in meant)}? " if meant else ""
            raise ValueError(f"unknown flag {shortened(arg)[1:-1]}: {hint}see --help")
        is_flag = re.match(r"--|-[a-zA-Z](=|$)", following)
        if meant[0] in parameters and is_text(parameters[meant[0]]) and not found[2] and is_flag:
            raise ValueError(f"--{meant[0]} needs a value: --{meant[0]}=VALUE")


PATHS = {"--models_dir"}  # flags that name a file or folder; beyond/ adds its own
INPUTS = set()  # flags that name an input file or are a text themselves


def expand_home(arg):
    """Expands ~ in --models_dir=~/models, which a shell does only at the beginning of an argument."""
    flag, sign, value = arg.partition("=")
    path = os.path.expanduser(value)
    if sign and (flag in PATHS or flag in INPUTS and os.path.exists(path)):
        return f"{flag}={path}"
    return arg


# --- help ---


def usage(main, *words):
    """The command as it is entered in a shell, with its required arguments."""
    spec, path = getattr(sys.modules["__main__"], "__spec__", None), sys.argv[0]
    program = f"python -m {spec.name}" if spec else f"python {path}" if ".py" in path else os.path.basename(path)
    if spec and " " in path:  # the word that selected main
        program += path[path.rindex(" ") :]
    required = [typed(one) for one in inspect.signature(main).parameters.values() if one.default is one.empty]
    return " ".join([program, *words, *required, "[--FLAG=VALUE ...]"])


def typed(parameter):
    """A required argument as it is entered in a shell."""
    name = parameter.name.upper()
    kinds = {parameter.VAR_POSITIONAL: f"{name} ...", parameter.KEYWORD_ONLY: f"--{parameter.name}={name}"}
    return kinds.get(parameter.kind, name)


def help_of(main, more):
    """What --help prints: how to type the command, what it does, and each flag with its range and default."""
    what, _, args = inspect.getdoc(main).partition("\nArgs:\n")
    texts = {**HELP, **more, **dict(re.findall(r"^ *(\w+): (.*?)(?=\n *\w+: |\Z)", args, re.M | re.S))}
    lines = [usage(main), "", what.strip(), ""]
    for name, one in inspect.signature(main).parameters.items():
        default = "Required." if one.default is one.empty else f"Default: {one.default!r}"
        flag = typed(one) if one.kind is one.VAR_POSITIONAL else f"--{name}={name.upper()}"
        lines += [f"    {flag}", f"        {default}", f"        {' '.join(texts.get(name, '').split())}"]
    return "\n".join(lines)
