"""Converts the tokenizer files of transformers to encoder.json and vocab.bpe, and back.

Both hold the same two tables: token -> id, and the merges by rank. Three things differ:

- tokenizer.json, the format of the tokenizers library, also states how text is processed before the merges. GPT-2
  splits it by the regular expression in encoder.py and maps bytes to characters; any other tokenizer is rejected.
- transformers matches added tokens, such as <|im_end|> or [PAD], in the text itself before splitting it, and stores
  them as plain text. encoder.py, where they are in the byte alphabet like all others, decodes but never encodes them.
- The end of text may have any name in transformers, and config.json gives its id. Here it is always <|endoftext|>.

Where a tokenizer puts a space before every text (add_prefix_space), the prompt has to begin with one here.
"""

import json
import os

from encoder import BYTE_TO_CHAR, CHAR_TO_BYTE, to_bytes

FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"]
END = "<|endoftext|>"


def read_json(folder, name):
    """The object in a JSON file, or {} if the file does not exist. Raises ValueError for any other content."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; remove it and fetch it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, not a {type(found).__name__}: choose another model")
    return found


# --- from transformers ---


def read_vocabulary(source, folder, files, n_vocab, end):
    """(the tokens by id, the merges) as encoder.json and vocab.bpe store them.

    end: eos_token_id in config.json, an id, a list of ids or None. Added tokens with ids of n_vocab or more are
    dropped, as they have no logit.
    Raises ValueError if ids are missing, a merge does not produce a token, or no token ends a text.
    """
    try:
        vocab, merges, added = read_tokenizer(source, folder, files)
        sorted({*vocab.values(), *added})
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the tokenizer of {source} is not in the format of the tokenizers library ({error!r}): it may be damaged, "
            f"so remove it and fetch it again"
        ) from None
    tokens = {id: token if set(token) <= set(CHAR_TO_BYTE) else spelled(token) for token, id in vocab.items()}
    tokens |= {id: spelled(text) for id, text in added.items() if id < n_vocab}
    if sorted(tokens) != list(range(len(tokens))) or len(tokens) > n_vocab:
        raise ValueError(
            f"{source} has {len(tokens)} tokens with ids up to {max(tokens, default=-1)}, but weights for the ids "
            f"below {n_vocab}: every id from 0 up needs a token, and every token needs weights; choose another model"
        )
    end = end[0] if isinstance(end, list) and end else end
    name_the_end(source, tokens, end, read_json(folder, "tokenizer_config.json").get("eos_token"))
    names = set(tokens.values())
    if len(names) < len(tokens):
        raise ValueError(f"{source} has {len(tokens) - len(names)} duplicate tokens: choose another model")
    for merge in merges:
        if len(pair := merge.split(" ")) != 2 or not {*pair, "".join(pair)} <= names:
            raise ValueError(f"{source} has the merge {merge!r}, which does not produce a token: choose another model")
    return [tokens[id] for id in range(len(tokens))], merges


def read_tokenizer(source, folder, files):
    """({token: id}, [merge "a b"], {id: text of an added token}) from tokenizer.json or the older files.

    Raises ValueError for a tokenizer other than GPT-2's byte-level BPE.
    """
    if whole := read_json(folder, "tokenizer.json"):
        model = whole.get("model") or {}
        check_kind(source, whole, model)
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        return model["vocab"], merges, {token["id"]: token["content"] for token in whole.get("added_tokens", [])}
    if "vocab.json" not in files or "merges.txt" not in files:
        others = [name for name in files if name == "vocab.txt" or name.endswith(".model")]
        kind = {"vocab.txt": "BERT's WordPiece", None: "missing"}.get(min(others, default=None), "SentencePiece")
        reject(source, f"{kind} ({', '.join(others) or 'neither tokenizer.json nor vocab.json with merges.txt'})")
    with open(os.path.join(folder, "merges.txt"), encoding="utf-8") as file:
        merges = [line for line in file.read().splitlines() if line and not line.startswith("#version")]
    added = {id: text for text, id in read_json(folder, "added_tokens.json").items()}
    decoder = read_json(folder, "tokenizer_config.json").get("added_tokens_decoder", {})
    return read_json(folder, "vocab.json"), merges, added | {int(id): token["content"] for id, token in decoder.items()}


def check_kind(source, whole, model):
    """Raises ValueError unless tokenizer.json processes text as encoder.py does."""
    before = whole.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    if model.get("type", "BPE") != "BPE" or kinds != ["ByteLevel"] or not steps[0].get("use_regex", True):
        reject(source, f"{model.get('type')} after {' and '.join(map(str, kinds))}")
    if whole.get("normalizer"):
        reject(source, f"one that first normalizes the text with {whole['normalizer'].get('type')}")
    for key in "dropout", "continuing_subword_prefix", "end_of_word_suffix":
        if model.get(key):
            reject(source, f"one with {key}={model[key]!r}")


def reject(source, what):
    raise ValueError(
        f"the tokenizer of {source} is {what}, but encoder.py supports only byte-level BPE as in GPT-2: choose another "
        f"model"
    )


def spelled(text):
    """A text in the byte alphabet of encoder.py."""
    return "".join([BYTE_TO_CHAR[byte] for byte in text.encode()])


def name_the_end(source, tokens, end, name):
    """Names the end of text <|endoftext|>: the token with the id end or, if there is none, the one with this name."""
    name = name.get("content") if isinstance(name, dict) else name
    ids = {token: id for id, token in tokens.items()}
    found = end if end in list(tokens) else ids.get(spelled(name or END), ids.get(END))
    if found is None:
        raise ValueError(
            f"{source} has no token that ends a text: neither eos_token_id={end} in config.json nor {END} "
            f"is among its {len(tokens)} tokens; choose another model"
        )
    if END in ids and ids[END] != found:
        tokens[ids[END]] = f"<|endoftext:{ids[END]}|>"  # names must be unique
    tokens[found] = END


def merges_file(merges):
    """The text of vocab.bpe and merges.txt, which are the same."""
    return "\n".join(["#version: 0.2", *merges, ""])


# --- to transformers ---


def tokenizer_files(encoder, merges, n_ctx):
    """{file name: content} in the formats of transformers, of a vocabulary {token: id} and its merges "a b"."""
    merged = {*CHAR_TO_BYTE, *[merge.replace(" ", "") for merge in merges]}
    added = [  # the tokens that no merge produces
        {
            "id": id,
            "content": to_bytes(token).decode("utf-8", "replace"),
            "special": token == END,
            **dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False),
        }
        for token, id in encoder.items()
        if token not in merged
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        **dict.fromkeys(["truncation", "padding", "normalizer"]),
        **dict.fromkeys(["pre_tokenizer", "decoder"], byte_level),
        "post_processor": {**byte_level, "trim_offsets": False},
        "model": {
            "type": "BPE",
            **dict.fromkeys(["dropout", "unk_token"]),
            **dict.fromkeys(["continuing_subword_prefix", "end_of_word_suffix"], ""),
            **dict.fromkeys(["fuse_unk", "byte_fallback"], False),
            "vocab": encoder,
            "merges": merges,
        },
    }
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        **dict.fromkeys(["bos_token", "eos_token", "unk_token"], END),
        **dict.fromkeys(["add_prefix_space", "clean_up_tokenization_spaces"], False),
        "model_max_length": n_ctx,
    }
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": config, "vocab.json": encoder}
    texts = {name: json.dumps(content, ensure_ascii=False, indent=2) for name, content in files.items()}
    return {**texts, "merges.txt": merges_file(merges)}
