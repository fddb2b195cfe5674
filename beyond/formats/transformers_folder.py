"""A model as the transformers library stores it: config.json and the weights; vocabulary.py has the tokenizer.

The tensors have other names (see beyond/huggingface.py) but the same shapes: GPT-2's linear layers are not transposed.
The prefix "transformer." may be missing, the tensors may be 16-bit and spread over several files, and attention masks
may be stored with them. Some GPT-2s divide the attention scores of block i by i + 1
(scale_attn_by_inverse_layer_idx): scores are linear in the queries, so here the part of c_attn that produces the
queries is divided instead. Models that differ in any other way are rejected.
"""

import json
import os
import re
import shutil

import numpy as np

from beyond.files.writing import write_text
from beyond.formats import vocabulary
import utils

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}  # transformers' defaults
ONLY = {  # settings of config.json: the equivalent values that gpt2.py supports; what any other value means
    "model_type": (["gpt2"], "another architecture"),
    "activation_function": (["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"], "another activation"),
    "layer_norm_epsilon": ([1e-5], "another layer norm"),
    "scale_attn_weights": ([True], "attention without the division by sqrt(d)"),
    "add_cross_attention": ([False], "attention to a second text"),
    "tie_word_embeddings": ([True], "an output matrix, lm_head, other than wte"),
    "quantization_config": ([None], "quantized weights"),
}
ARCHITECTURES = "GPT2LMHeadModel", "GPT2Model", "GPT2DoubleHeadsModel"
UNUSED = re.compile(r"h\.\d+\.attn\.(masked_)?bias|lm_head\.weight|(multiple_choice_head|v_head)\..*")  # masks, heads


def their_name(name):
    """h3/attn/c_attn/w -> h.3.attn.c_attn.weight, wte -> wte.weight."""
    *path, last = re.sub("^h", "h/", name).split("/")
    return ".".join([*path, {"w": "weight", "g": "weight", "b": "bias"}.get(last, f"{last}.weight")])


# --- reading ---


def read_config(source, config):
    """hparams from config.json. Raises ValueError for a model that gpt2.py would compute differently."""
    config.setdefault("model_type", "gpt2" if config.get("architectures") else None)
    for key, (values, what) in ONLY.items():
        if (found := config.get(key, values[0])) not in values:
            raise ValueError(
                f"{source} has {key}={json.dumps(found)[:80]} in config.json, {what}: gpt2.py supports only "
                f"{json.dumps(values[0])}; choose another model"
            )
    if (names := config.get("architectures")) and names[0] not in ARCHITECTURES:
        raise ValueError(f"{source} is a {names[0]}, but gpt2.py needs a language model, a {ARCHITECTURES[0]}")
    sizes = [config.get(key, default) for key, default in SIZES.items()]
    if not all(type(size) is int and size > 0 for size in sizes) or sizes[2] % sizes[3]:
        raise ValueError(
            f"{source} has {dict(zip(SIZES, sizes))} in config.json: they must be positive integers, and n_embd a "
            f"multiple of n_head"
        )
    if (n_inner := config.get("n_inner")) not in (None, 4 * sizes[2]):
        raise ValueError(
            f"{source} has n_inner={n_inner} in config.json: gpt2.py supports only 4 * n_embd, here {4 * sizes[2]}; "
            f"choose another model"
        )
    return dict(zip(utils.HPARAMS, sizes))


def open_weights(paths):
    """{name without "transformer.": (its file, opened, and its full name)}. Raises ValueError for a damaged file."""
    import ml_dtypes  # noqa: F401  so that NumPy knows bfloat16
    from safetensors import SafetensorError, safe_open

    tensors = {}
    for path in paths:
        try:
            file = safe_open(path, "numpy")
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}; remove it and fetch it again") from None
        tensors.update({name.removeprefix("transformer."): (file, name) for name in file.keys()})
    return tensors


def check_weights(source, tensors, hparams):
    """Raises ValueError unless the tensors are exactly those of a GPT-2 of this size, apart from UNUSED ones."""
    expected = {their_name(name): shape for name, shape in utils.shapes_of(**hparams).items()}
    if missing := expected.keys() - tensors:
        raise ValueError(f"{source} lacks {len(missing)} tensors that config.json requires, such as {min(missing)}")
    if more := [name for name in tensors if name not in expected and not UNUSED.fullmatch(name)]:
        raise ValueError(
            f"{source} has {len(more)} tensors that GPT-2 does not have, such as {min(more)}: if these are adapters, "
            f"merge them with transformers first"
        )
    for name, shape in expected.items():
        file, full_name = tensors[name]
        found = file.get_slice(full_name)
        if found.get_shape() != shape or found.get_dtype() not in ("F32", "F16", "BF16"):
            raise ValueError(
                f"{source} does not match its config.json: {full_name} is {found.get_dtype()} {found.get_shape()} "
                f"instead of F32, F16 or BF16 {shape}"
            )
    if "lm_head.weight" in tensors and not np.array_equal(read(tensors, "lm_head.weight"), read(tensors, "wte.weight")):
        raise ValueError(
            f"{source} has an output matrix, lm_head, other than wte: gpt2.py uses wte for both; choose another model"
        )


def read(tensors, name):
    file, full_name = tensors[name]
    return file.get_tensor(full_name).astype(np.float32)


def converted(tensors, name, by_layer):
    """One tensor as in OpenAI's checkpoint: float32, a w with a leading axis of 1. by_layer: see above."""
    array = read(tensors, their_name(name))
    if by_layer and (c_attn := re.match(r"h(\d+)/attn/c_attn", name)):
        array[..., : array.shape[-1] // 3] /= int(c_attn[1]) + 1
    return array[None] if name.endswith("/w") else array


# --- writing ---


def write(folder, encoder, hparams, params):
    """Writes a loaded model to a folder, for AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    n_ctx, merges = hparams["n_ctx"], [" ".join(pair) for pair in encoder.bpe_ranks]
    end = dict.fromkeys(["bos_token_id", "eos_token_id"], encoder.encoder.get(vocabulary.END))
    config = {
        "architectures": [ARCHITECTURES[0]],
        **{key: values[0] for key, (values, _) in ONLY.items() if values[0] is not None},
        **dict(zip(SIZES, [hparams[name] for name in utils.HPARAMS])),
        "n_ctx": n_ctx,
        **end,
        "torch_dtype": "float32",
    }
    files = {"config.json": json.dumps(config, indent=2), "generation_config.json": json.dumps(end, indent=2)}
    files |= vocabulary.tokenizer_files(encoder.encoder, merges, n_ctx)
    for name, text in files.items():
        write_text(os.path.join(folder, name), text)
    tensors = {f"transformer.{their_name(name)}": array for name, array in utils.named_arrays(params)}
    try:
        save_file(tensors, os.path.join(folder, WEIGHTS), metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    shutil.copymode(os.path.join(folder, "config.json"), os.path.join(folder, WEIGHTS))  # not only for the owner
