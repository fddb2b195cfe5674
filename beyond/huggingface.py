"""To and from Hugging Face: the same numbers in another container.

    python -m beyond.huggingface fetch openai-community/gpt2 --out models/gpt2
    python -m beyond.huggingface save shakespeare --out shakespeare-hf

The first makes a model folder of a repository on the hub, or of a folder that transformers wrote; the second makes of
a model folder what AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained read. What differs:

    here                         there                                        shape
    model/wte, model/wpe         transformer.wte.weight, transformer.wpe...   [n_vocab, n_embd], [n_ctx, n_embd]
    model/h0/ln_1/g, b           transformer.h.0.ln_1.weight, bias            [n_embd]
    model/h0/attn/c_attn/w, b    transformer.h.0.attn.c_attn.weight, bias     [n_embd, 3 * n_embd]: not transposed
    encoder.json, vocab.bpe      vocab.json, merges.txt; tokenizer.json has both

There, "transformer." may be missing, the tensors may be in several files and in 16 bits, and masks may lie among them.
Some GPT-2s divide the attention scores of block i by i + 1 (scale_attn_by_inverse_layer_idx): a score is linear in its
query, so the part of c_attn that makes the queries is divided instead. Whatever else differs is refused, most of it
by the small files, before the weights are downloaded. No code from there runs: pickled weights are refused, too.
"""

import contextlib
import json
import os
import re
import shutil

import numpy as np

from beyond.files.writing import write_text
from beyond.formats import vocabulary
from beyond.formats.checkpoint import CHECKPOINT, save_checkpoint
from beyond.formats.checkpoint import tensors as tensors_of
from beyond.formats.hub import (
    ARCHITECTURES,
    ONLY,
    SIZES,
    SMALL,
    WEIGHTS,
    check_room,
    choose_weights,
    files_of,
    read_config,
)
import cli
import utils

UNUSED = re.compile(r"h\.\d+\.attn\.(masked_)?bias|lm_head\.weight|(multiple_choice_head|v_head)\..*")  # masks, heads

# --- names and numbers ---


def their_name(name):
    """h3/attn/c_attn/w -> h.3.attn.c_attn.weight, wte -> wte.weight."""
    *path, last = re.sub("^h", "h/", name).split("/")
    return ".".join([*path, {"w": "weight", "g": "weight", "b": "bias"}.get(last, f"{last}.weight")])


def open_weights(paths):
    """{name there, without "transformer.": (its file, opened, and its whole name)}. Raises ValueError if damaged."""
    import ml_dtypes  # noqa: F401  so that NumPy knows bfloat16
    from safetensors import SafetensorError, safe_open

    tensors = {}
    for path in paths:
        try:
            file = safe_open(path, "numpy")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}; remove it, and fetch it again") from None
        tensors.update({name.removeprefix("transformer."): (file, name) for name in file.keys()})
    return tensors


def read(tensors, name):
    file, whole_name = tensors[name]
    return file.get_tensor(whole_name).astype(np.float32)


def check_weights(source, tensors, hparams):
    """Raises ValueError unless the tensors are all that a GPT-2 of this size has, and nothing else that matters."""
    expected = {their_name(name): shape for name, shape in utils.shapes_of(**hparams).items()}
    if missing := expected.keys() - tensors:
        raise ValueError(f"{source} lacks {len(missing)} tensors that config.json promises, such as {min(missing)}")
    if more := [name for name in tensors if name not in expected and not UNUSED.fullmatch(name)]:
        raise ValueError(
            f"{source} has {len(more)} tensors that GPT-2 has not, such as {min(more)}: if these are "
            f"adapters, merge them there first"
        )
    for name, shape in expected.items():
        file, whole_name = tensors[name]
        found = file.get_slice(whole_name)
        if found.get_shape() != shape or found.get_dtype() not in ("F32", "F16", "BF16"):
            raise ValueError(
                f"{source} does not fit its config.json: {whole_name} is {found.get_dtype()} "
                f"{found.get_shape()} instead of F32, F16 or BF16 {shape}"
            )
    if "lm_head.weight" in tensors and not np.array_equal(read(tensors, "lm_head.weight"), read(tensors, "wte.weight")):
        raise ValueError(
            f"{source} has an output matrix, lm_head, that is not wte: gpt2.py uses wte for both; choose another model"
        )


def converted(tensors, name, by_layer):
    """One tensor as OpenAI's checkpoint has it: float32, a w with a leading axis of 1."""
    array = read(tensors, their_name(name))
    if by_layer and (c_attn := re.match(r"h(\d+)/attn/c_attn", name)):
        array[..., : array.shape[-1] // 3] /= int(c_attn[1]) + 1
    return array[None] if name.endswith("/w") else array


# --- the commands ---


def check_new(out):
    """Raises ValueError if out is there, other than as a folder in which gpt2.py has not finished a download."""
    if not os.path.lexists(out):
        return
    names = os.listdir(out) if os.path.isdir(out) else [""]
    whole = {name for name in names if not name.endswith(".part")}
    # what is there of one of OpenAI's models can go, as only that model itself may take its name
    ours = set(utils.FILES) if os.path.basename(os.path.abspath(out)) in utils.SHA256 else set()
    if not whole <= ours or whole >= set(utils.FILES):
        raise ValueError(f"{out} is there already: use it, or name another with --out, or remove it")


@contextlib.contextmanager
def building(out):
    """A new folder, out.part, which becomes out at the end of the block, or goes if that fails. One process at a time.

    A kill may leave the folder under that name; the next time begins it anew.
    """
    out = os.path.abspath(out)
    os.makedirs(os.path.dirname(out), exist_ok=True)
    with utils.locked(os.path.dirname(out)):
        check_new(out)  # another process may have been quicker
        shutil.rmtree(f"{out}.part", ignore_errors=True)
        try:
            os.mkdir(f"{out}.part")
            yield f"{out}.part"
            shutil.rmtree(out, ignore_errors=True)
            os.rename(f"{out}.part", out)
        except OSError as error:
            raise OSError(
                f"cannot write {out}: {error.strerror or error}; make room there, or name another folder with --out"
            ) from None
        finally:
            shutil.rmtree(f"{out}.part", ignore_errors=True)


def check_openais(source, folder, name):
    """Raises ValueError if the folder is to have the name of one of OpenAI's models and is not that model."""
    digests = utils.SHA256.get(name, {})
    for file in utils.DATA, "encoder.json", "vocab.bpe", "hparams.json":
        size = utils.DATA_BYTES.get(name) if file == utils.DATA else None
        if problem := utils.problem_of(os.path.join(folder, file), digests.get(file), size):
            raise ValueError(f"{source} is not OpenAI's {name}: {file} {problem}; give it another name with --out")


def fetch(source, out, revision: str = None):
    """Makes a model folder of a GPT-2 on the Hugging Face hub, or in a folder that transformers wrote.

    What is downloaded stays in the hub's cache, so that a fetch which was cut off begins again with the files that it
    has. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean everywhere.

    Args:
        source: A repository on the hub, such as openai-community/gpt2 or distilbert/distilgpt2, or a folder.
        out: The new folder, such as models/gpt2. The name of one of OpenAI's models, such as models/124M, is only
            for that model itself.
        revision: A branch, a tag or a commit of the repository; by default its main branch.
    """
    check_new(out)
    files, files_in = files_of(source, revision)
    folder = files_in([name for name in SMALL if name in files])
    config = vocabulary.read_json(folder, "config.json")
    hparams = read_config(source, config)
    tokens, merges = vocabulary.read_vocabulary(source, folder, files, hparams["n_vocab"], config.get("eos_token_id"))
    weights = choose_weights(source, folder, files)
    n_params = check_room(source, hparams, sum(files[name][0] for name in weights), out)
    folder = files_in(weights)
    tensors = open_weights([os.path.join(folder, name) for name in weights])
    check_weights(source, tensors, hparams)
    by_layer = config.get("scale_attn_by_inverse_layer_idx", False)
    files = {
        "checkpoint": CHECKPOINT,
        "hparams.json": json.dumps(hparams, indent=2) + "\n",
        "encoder.json": json.dumps({token: id for id, token in enumerate(tokens)}),
        "vocab.bpe": "\n".join(["#version: 0.2", *merges, ""]),
    }
    with building(out) as part:
        save_checkpoint(
            os.path.join(part, "model.ckpt"),
            [f"model/{name}" for name in utils.shapes_of(**hparams)],
            lambda name: converted(tensors, name.removeprefix("model/"), by_layer),
        )
        for name, text in files.items():
            write_text(os.path.join(part, name), text)
        utils.load_encoder_hparams_and_params(os.path.basename(part), os.path.dirname(part))  # its checks, too
        check_openais(source, part, os.path.basename(os.path.abspath(out)))
    return f"{out}: {n_params:,} parameters, {len(tokens)} tokens, a context of {hparams['n_ctx']}"


def save(model_size, out, models_dir="models"):
    """Makes of a model what transformers reads: AutoModelForCausalLM.from_pretrained and AutoTokenizer's, given out.

    llama.cpp's convert_hf_to_gguf.py takes it, too, if the vocabulary is GPT-2's. It knows tokenizers by the ids that
    they give for one text, so for a vocabulary of your own its get_vocab_base_pre has to return "gpt-2" first.

    Args:
        model_size: 124M, 355M, 774M, 1558M (downloaded at first use) or another folder in models_dir.
        out: The new folder.
        models_dir: Where the models are; by default models/ beside utils.py.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    check_new(out)
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    n_ctx, merges = hparams["n_ctx"], [" ".join(pair) for pair in encoder.bpe_ranks]
    end = dict.fromkeys(["bos_token_id", "eos_token_id"], encoder.encoder.get(vocabulary.END))
    sizes = dict(zip(SIZES, [len(params["wte"]), n_ctx, *[hparams[name] for name in utils.HPARAMS[2:]]]))
    known = {key: values[0] for key, (values, _) in ONLY.items() if values[0] is not None}
    files = {
        "config.json": {
            "architectures": [ARCHITECTURES[0]],
            **known,
            **sizes,
            "n_ctx": n_ctx,
            **end,
            "torch_dtype": "float32",
        },
        "generation_config.json": end,
        **vocabulary.tokenizer_files(encoder.encoder, merges, n_ctx),
    }
    tensors = {"transformer." + their_name(name.removeprefix("model/")): array for name, array in tensors_of(params)}
    with building(out) as part:
        try:
            save_file(tensors, os.path.join(part, WEIGHTS), metadata={"format": "pt"})
            os.chmod(os.path.join(part, WEIGHTS), 0o644)  # safetensors lets nobody else read it
        except SafetensorError as error:
            raise OSError(str(error)) from None
        for name, content in files.items():
            write_text(os.path.join(part, name), json.dumps(content, ensure_ascii=False, indent=2))
        write_text(os.path.join(part, "merges.txt"), "\n".join(["#version: 0.2", *merges, ""]))
    return f"{out}: {sum(array.size for array in tensors.values()):,} parameters, {len(encoder.encoder)} tokens"


if __name__ == "__main__":
    cli.run({"fetch": fetch, "save": save})
