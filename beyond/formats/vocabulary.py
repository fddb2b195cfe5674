"""From the tokenizer files of transformers to encoder.json and vocab.bpe, and back.

Both sides have the same two tables, token -> id and the merges by rank. There are three differences:

- tokenizer.json, of the tokenizers library, says how text is treated before the merges. Here that is GPT-2's way alone:
  bytes, cut into words by the regular expression of encoder.py. Any other tokenizer is refused.
- Added tokens, such as <|im_end|> or [PAD], are matched in the text itself, before it is cut. Their names are plain
  text, here in the byte alphabet like all others. Here they are generated, but never read from a text.
- The end of text may have any name there, and config.json gives its id. Here it is called <|endoftext|>.

Where a tokenizer there puts a space before every text (add_prefix_space), the prompt has to begin with one here.
"""

import json
import os

from encoder import BYTE_TO_CHAR, CHAR_TO_BYTE, to_bytes

FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"]
END = "<|endoftext|>"


def read_json(folder, name):
    """The object in a JSON file, or {} where there is none. Raises ValueError for a file that holds anything else."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; remove it, and fetch it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, not a {type(found).__name__}: choose another model")
    return found


def read_tokenizer(source, folder, files):
    """({token: id}, [merge "a b"], {id: text of an added token}) from tokenizer.json or the older files.

    Raises ValueError for a tokenizer that is not byte-level BPE as in GPT-2.
    """
    whole, settings = read_json(folder, "tokenizer.json"), read_json(folder, "tokenizer_config.json")
    if whole:
        model = whole.get("model") or {}
        check_kind(source, whole, model)
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        return model["vocab"], merges, {token["id"]: token["content"] for token in whole.get("added_tokens", [])}
    if "vocab.json" not in files or "merges.txt" not in files:
        words = [name for name in files if name == "vocab.txt" or name.endswith(".model")]
        kind = {"vocab.txt": "BERT's word pieces", None: "none"}.get(min(words, default=None), "SentencePiece")
        refuse(source, f"{kind} ({', '.join(words) or 'no tokenizer.json, no vocab.json with merges.txt'})")
    with open(os.path.join(folder, "merges.txt"), encoding="utf-8") as file:
        merges = [line for line in file.read().splitlines() if line and not line.startswith("#version")]
    added = {id: text for text, id in read_json(folder, "added_tokens.json").items()}
    decoder = settings.get("added_tokens_decoder", {})
    return read_json(folder, "vocab.json"), merges, added | {int(id): token["content"] for id, token in decoder.items()}


def refuse(source, what):
    raise ValueError(
        f"the tokenizer of {source} is {what}, and encoder.py has only GPT-2's, byte-level BPE: choose another model"
    )


def check_kind(source, whole, model):
    """Raises ValueError unless tokenizer.json treats text as encoder.py does."""
    before = whole.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    if model.get("type", "BPE") != "BPE" or kinds != ["ByteLevel"] or not steps[0].get("use_regex", True):
        refuse(source, f"{model.get('type')} after {' and '.join(map(str, kinds))}")
    if whole.get("normalizer"):
        refuse(source, f"one that changes the text first, by {whole['normalizer'].get('type')}")
    for key in "dropout", "continuing_subword_prefix", "end_of_word_suffix":
        if model.get(key):
            refuse(source, f"one with {key}={model[key]!r}")


def spelled(text):
    return "".join([BYTE_TO_CHAR[byte] for byte in text.encode()])


def read_vocabulary(source, folder, files, n_vocab, end):
    """(the tokens by id, the merges) as encoder.json and vocab.bpe have them.

    end: eos_token_id in config.json, an id, a list of them or None. Added tokens with ids of n_vocab or more are left
    out, as no logit is theirs.
    Raises ValueError for a vocabulary with gaps, with merges that make no tokens, or without an end.
    """
    try:
        vocab, merges, added = read_tokenizer(source, folder, files)
        sorted({*vocab.values(), *added})
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the tokenizer of {source} is not as tokenizers writes it ({error!r}): it may be damaged, "
            f"so remove it and fetch it again"
        ) from None
    tokens = {id: token if set(token) <= set(CHAR_TO_BYTE) else spelled(token) for token, id in vocab.items()}
    tokens |= {id: spelled(text) for id, text in added.items() if id < n_vocab}
    if sorted(tokens) != list(range(len(tokens))) or len(tokens) > n_vocab:
        raise ValueError(
            f"{source} has {len(tokens)} tokens with ids up to {max(tokens, default=-1)}, and weights for "
            f"the ids below {n_vocab}: ids must have no gap, and weights; choose another model"
        )
    end = end[0] if isinstance(end, list) and end else end
    name_the_end(source, tokens, end, read_json(folder, "tokenizer_config.json").get("eos_token"))
    names = set(tokens.values())
    if len(names) < len(tokens):
        raise ValueError(f"{source} has {len(tokens) - len(names)} tokens twice: choose another model")
    for merge in merges:
        if len(pair := merge.split(" ")) != 2 or not {*pair, "".join(pair)} <= names:
            raise ValueError(f"{source} has the merge {merge!r}, which makes no token: choose another model")
    return [tokens[id] for id in range(len(tokens))], merges


def name_the_end(source, tokens, end, name):
    """Calls the end of text <|endoftext|>: the id end or, where no token has that, the one with that name or name."""
    name = name.get("content") if isinstance(name, dict) else name
    ids = {token: id for id, token in tokens.items()}
    found = end if end in list(tokens) else ids.get(spelled(name or END), ids.get(END))
    if found is None:
        raise ValueError(
            f"{source} has no token that ends a text: neither eos_token_id={end} in config.json nor {END} "
            f"is among its {len(tokens)} tokens; choose another model"
        )
    if END in ids and ids[END] != found:
        tokens[ids[END]] = f"<|endoftext:{ids[END]}|>"  # END is taken, and two cannot share it
    tokens[found] = END


def tokenizer_files(encoder, merges, n_ctx):
    """{name of a file there: what it holds} for a vocabulary of ours {token: id} and its merges "a b"."""
    made = {*CHAR_TO_BYTE, *[merge.replace(" ", "") for merge in merges]}
    added = []
    for token, id in encoder.items():
        if token not in made:  # no merge makes it, so it is an added token
            text = to_bytes(token).decode("utf-8", "replace")
            added.append(
                {
                    "id": id,
                    "content": text,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": token == END,
                }
            )
    bytes_and_words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": bytes_and_words,
        "post_processor": {**bytes_and_words, "trim_offsets": False},
        "decoder": bytes_and_words,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": encoder,
            "merges": merges,
        },
    }
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_ctx,
    }
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "vocab.json": encoder}
