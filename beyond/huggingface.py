"""To and from Hugging Face: the same numbers in another container.

    python -m beyond.huggingface fetch openai-community/gpt2 --out models/gpt2
    python -m beyond.huggingface save shakespeare --out shakespeare-hf

fetch makes a model folder from a repository on the hub, or from a folder that transformers wrote. save makes a folder
that AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained read. The names differ:

    PicoGPT                      transformers                                    shape
    model/wte, model/wpe         transformer.wte.weight, transformer.wpe.weight  [n_vocab, n_embd], [n_ctx, n_embd]
    model/h0/ln_1/g, b           transformer.h.0.ln_1.weight, bias               [n_embd]
    model/h0/attn/c_attn/w, b    transformer.h.0.attn.c_attn.weight, bias        [n_embd, 3 * n_embd], [3 * n_embd]
    encoder.json, vocab.bpe      vocab.json, merges.txt; tokenizer.json has both

formats/transformers_folder.py and formats/vocabulary.py describe the other differences. A model that gpt2.py would
compute differently is rejected, in most cases from the small files alone, before the weights are downloaded. Code from
a repository never runs: pickled weights are rejected.
"""

import contextlib
import json
import os
import shutil

from beyond.files.writing import new_folder, write_text
from beyond.formats import hub, transformers_folder, vocabulary
from beyond.formats.checkpoint import CHECKPOINT, save_checkpoint
import cli
import utils


def parent_of(out):
    """The nearest existing folder in which out will be created. Raises OSError if it is not writable."""
    parent = os.path.dirname(os.path.abspath(out))
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK):
        raise OSError(f"{parent} is not a folder that you can write to: name another folder with --out")
    return parent


def check_new(out):
    """Raises ValueError if out exists, unless it is gpt2.py's unfinished download; OSError if it cannot be created."""
    if not os.path.lexists(out):
        parent_of(out)
        return
    names = os.listdir(out) if os.path.isdir(out) else [""]
    complete = {name for name in names if not name.endswith(".part")}
    # under the name of one of OpenAI's models, its files may be replaced: only that model itself can have this name
    replaceable = set(utils.FILES) if os.path.basename(os.path.abspath(out)) in utils.SHA256 else set()
    if not complete <= replaceable or complete >= set(utils.FILES):
        raise ValueError(f"{out} already exists: use it, or give another name with --out, or remove it")


@contextlib.contextmanager
def building(out):
    """A new folder that becomes out at the end of the block. One process at a time."""
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with utils.locked(out):
        check_new(out)  # again, as another process may have been faster
        with new_folder(out) as part:
            yield part
        for name in os.listdir(out):
            if name.endswith(".part"):  # of the unfinished download
                os.remove(os.path.join(out, name))


def check_room(source, hparams, n_bytes, out):
    """The number of parameters. Raises ValueError if n_bytes are too few for them, OSError if the disk is full."""
    n_vocab, n_ctx, n, _, n_layer = hparams.values()
    n_params = (n_vocab + n_ctx + 2) * n + n_layer * (12 * n + 13) * n
    if n_bytes < 2 * n_params:
        raise ValueError(
            f"{source} has {n_bytes:,} bytes of weights, but the {n_params:,} parameters of its config.json take at "
            f"least {2 * n_params:,}: either they are from different models, or the weights are quantized"
        )
    if (free := shutil.disk_usage(parent_of(out)).free) < 4 * n_params:
        raise OSError(
            f"{parent_of(out)} has {free:,} bytes free, but {out} will take {4 * n_params:,}: make room, or name "
            f"another folder with --out"
        )
    return n_params


def check_openais(source, folder, name):
    """Raises ValueError if name is that of one of OpenAI's models and the folder does not contain that model."""
    digests = utils.SHA256.get(name, {})
    for file in utils.DATA, "encoder.json", "vocab.bpe", "hparams.json":
        size = utils.DATA_BYTES.get(name) if file == utils.DATA else None
        if problem := utils.problem_of(os.path.join(folder, file), digests.get(file), size):
            raise ValueError(f"{source} is not OpenAI's {name}: {file} {problem}; give it another name with --out")


def fetch(source, out, revision: str = None):
    """Makes a model folder from a GPT-2 on the Hugging Face hub, or in a folder that transformers wrote.

    Downloads stay in the hub's cache, so an interrupted fetch resumes with the files that are complete. HF_TOKEN,
    HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE have their usual meanings.

    Args:
        source: A repository on the hub, such as openai-community/gpt2 or distilbert/distilgpt2, or a folder.
        out: The new folder, such as models/gpt2. The names of OpenAI's models, such as models/124M, are reserved for
            exactly those models.
        revision: A branch, tag or commit of the repository; by default its main branch.
    """
    check_new(out)
    files, files_in = hub.files_of(source, revision)
    folder = files_in([name for name in hub.SMALL if name in files])
    config = vocabulary.read_json(folder, "config.json")
    hparams = transformers_folder.read_config(source, config)
    tokens, merges = vocabulary.read_vocabulary(source, folder, files, hparams["n_vocab"], config.get("eos_token_id"))
    weights = hub.choose_weights(source, folder, files)
    n_params = check_room(source, hparams, sum(files[name][0] for name in weights), out)
    folder = files_in(weights)
    tensors = transformers_folder.open_weights([os.path.join(folder, name) for name in weights])
    transformers_folder.check_weights(source, tensors, hparams)
    by_layer = config.get("scale_attn_by_inverse_layer_idx", False)
    texts = {
        "checkpoint": CHECKPOINT,
        "hparams.json": json.dumps(hparams, indent=2) + "\n",
        "encoder.json": json.dumps({token: id for id, token in enumerate(tokens)}),
        "vocab.bpe": vocabulary.merges_file(merges),
    }
    with building(out) as part:
        save_checkpoint(
            os.path.join(part, "model.ckpt"),
            [f"model/{name}" for name in utils.shapes_of(**hparams)],
            lambda name: transformers_folder.converted(tensors, name.removeprefix("model/"), by_layer),
        )
        for name, text in texts.items():
            write_text(os.path.join(part, name), text)
        utils.load_encoder_hparams_and_params(os.path.basename(part), os.path.dirname(part))  # for its checks
        check_openais(source, part, os.path.basename(os.path.abspath(out)))
    return f"{out}: {n_params:,} parameters, {len(tokens)} tokens, a context of {hparams['n_ctx']}"


def save(model_size, out, models_dir="models"):
    """Makes a folder for transformers: AutoModelForCausalLM.from_pretrained and AutoTokenizer.from_pretrained read it.

    llama.cpp's convert_hf_to_gguf.py also reads it if the vocabulary is GPT-2's. It recognizes tokenizers by the ids of
    one text, so with a vocabulary of your own its get_vocab_base_pre first has to return "gpt-2".

    Args:
        out: The new folder.
    """
    check_new(out)
    encoder, hparams, params = utils.load_encoder_hparams_and_params(model_size, models_dir)
    with building(out) as part:
        transformers_folder.write(part, encoder, hparams, params)
    n_params = sum(array.size for _, array in utils.named_arrays(params))
    return f"{out}: {n_params:,} parameters, {len(encoder.encoder)} tokens"


if __name__ == "__main__":
    cli.run({"fetch": fetch, "save": save})
