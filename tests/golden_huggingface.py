"""Makes tests/golden_huggingface.npz: the logits of Hugging Face transformers for repositories that FORMS describes.

    pip install torch transformers safetensors ml_dtypes && python tests/golden_huggingface.py

The tests make the same repositories by write_repository, fetch them and compare; they need neither torch nor
transformers. Every form is read by AutoModelForCausalLM.from_pretrained, as its user would.
"""

import json
import os
import sys

import numpy as np

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
import golden

from encoder import BYTE_TO_CHAR

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden_huggingface.npz")
HPARAMS = {"n_vocab": 260, "n_ctx": 24, "n_embd": 20, "n_head": 5, "n_layer": 3}
MERGES = ["Ġ t", "h e", "Ġt he"]
VOCABULARY = [*BYTE_TO_CHAR.values(), "Ġt", "he", "Ġthe", "<|endoftext|>"]
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 260,
    "n_positions": 24,
    "n_ctx": 24,
    "n_embd": 20,
    "n_head": 5,
    "n_layer": 3,
    "eos_token_id": 259,
    "bos_token_id": 259,
}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
FORMS = {  # what differs from the plain form
    "plain": {},
    "bare": {"prefix": "", "buffers": True},
    "lm_head": {"lm_head": 1},
    "sharded": {"shards": 3},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "by layer": {"config": {"scale_attn_by_inverse_layer_idx": True}},
    "gelu": {"config": {"activation_function": "gelu_pytorch_tanh"}},
    "gelu_fast": {"config": {"activation_function": "gelu_fast"}},
    "gelu_accurate": {"config": {"activation_function": "gelu_accurate"}},
}


def tensors(prefix="transformer.", buffers=False, lm_head=0, dtype="float32"):
    import ml_dtypes  # noqa: F401  so that NumPy knows bfloat16

    made = {}
    for name, array in golden.weights(HPARAMS).items():
        parts = name.removeprefix("model/").replace("h", "h.", 1 if name[6:7] == "h" else 0).split("/")
        parts[-1] = {"w": "weight", "g": "weight", "b": "bias"}.get(parts[-1], parts[-1] + ".weight")
        made[prefix + ".".join(parts)] = (array[0] if array.ndim == 3 else array).astype(dtype)
    if buffers:
        for i in range(HPARAMS["n_layer"]):
            made[f"{prefix}h.{i}.attn.bias"] = np.tri(24, dtype=bool)[None, None]
            made[f"{prefix}h.{i}.attn.masked_bias"] = np.array(-1e4, np.float32)
    if lm_head:
        made["lm_head.weight"] = made[prefix + "wte.weight"] * np.array(lm_head, made[prefix + "wte.weight"].dtype)
    return made


def write_repository(folder, shards=1, config=None, vocabulary=VOCABULARY, tokenizer=None, **form):
    """A folder as transformers writes it. tokenizer: what differs in tokenizer.json; without it the older two files."""
    from safetensors.numpy import save_file

    os.makedirs(folder, exist_ok=True)
    made = tensors(**form)
    names = ["model.safetensors"] if shards == 1 else [f"model-{i + 1}-of-{shards}.safetensors" for i in range(shards)]
    place = {name: names[i % shards] for i, name in enumerate(made)}
    for file in names:
        save_file(
            {name: made[name] for name in made if place[name] == file}, os.path.join(folder, file), {"format": "pt"}
        )
    files = {"config.json": {**CONFIG, **(config or {})}}
    if shards > 1:
        files["model.safetensors.index.json"] = {"metadata": {"total_size": 1}, "weight_map": place}
    ids = {token: id for id, token in enumerate(vocabulary)}
    if tokenizer is None:
        files["vocab.json"] = ids
        with open(os.path.join(folder, "merges.txt"), "w", encoding="utf-8") as file:
            file.write("\n".join(["#version: 0.2", *MERGES, ""]))
    else:
        model = {"type": "BPE", "vocab": ids, "merges": [merge.split(" ") for merge in MERGES]}
        files["tokenizer.json"] = {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": BYTE_LEVEL,
            "post_processor": None,
            "decoder": BYTE_LEVEL,
            **tokenizer,
            "model": {**model, **tokenizer.get("model", {})},
        }
    for name, content in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file)


def logits(folder):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return (
            model(torch.from_numpy(golden.inputs(HPARAMS))[None]).logits[0, ::4].numpy()
        )  # every fourth, to save room


if __name__ == "__main__":
    import tempfile

    import transformers

    print("transformers", transformers.__version__)
    made = {}
    for form, differs in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_repository(folder, **differs)
            made[form] = logits(folder)
    np.savez_compressed(PATH, **made)
