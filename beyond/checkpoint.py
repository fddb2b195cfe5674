"""A model folder, made: parameters before the first step, and a checkpoint as OpenAI's are.

    checkpoint.save_model(checkpoint.initial_params(**hparams), hparams, "models/mine")

What utils.py reads is written here, by TensorFlow, whose format it is.
"""

import importlib.util
import json
import math
import os
import shutil

import numpy as np

import utils
from beyond import files


def initial_params(n_vocab, n_ctx, n_embd, n_head, n_layer, seed=0):
    """Parameters before the first step, as in GPT-2 (section 2.3 of its paper): weights normal with deviation 0.02,
    in front of a residual sum 0.02 / sqrt(2 n_layer), as that sum has 2 n_layer terms; g 1, b 0."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=0.02):
        return scale * rng.standard_normal(shape, np.float32)

    def norm():
        return {"g": np.ones(n_embd, np.float32), "b": np.zeros(n_embd, np.float32)}

    def layer(n_in, n_out, scale=0.02):
        return {"w": normal(n_in * n_embd, n_out * n_embd, scale=scale), "b": np.zeros(n_out * n_embd, np.float32)}

    residual = 0.02 / math.sqrt(2 * n_layer)
    return {"wte": normal(n_vocab, n_embd), "wpe": normal(n_ctx, n_embd), "ln_f": norm(), "blocks": [
        {"ln_1": norm(), "attn": {"c_attn": layer(1, 3), "c_proj": layer(1, 1, residual)},
         "ln_2": norm(), "mlp": {"c_fc": layer(1, 4), "c_proj": layer(4, 1, residual)}} for _ in range(n_layer)]}


def tensors(params, prefix="model"):
    """Yields (name, array) in the checkpoint's names: params["blocks"][3]["ln_1"]["g"] is model/h3/ln_1/g."""
    for key, value in params.items():
        if key == "blocks":
            for i, block in enumerate(value):
                yield from tensors(block, f"{prefix}/h{i}")
        elif isinstance(value, dict):
            yield from tensors(value, f"{prefix}/{key}")
        else:
            yield f"{prefix}/{key}", value


def check_tensorflow():
    """Raises ValueError if TensorFlow, which alone writes checkpoints, is not there."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError("checkpoints are written by TensorFlow, which is not installed: pip install tensorflow")


def save_model(params, hparams, folder):
    """Writes hparams.json and the checkpoint as TensorFlow 1 wrote OpenAI's: float32, sorted by name, w [1, in, out].

    Each file takes its place only when it is whole; encoder.json and vocab.bpe come from elsewhere.
    Raises OSError if the disk is full or the folder may not be written to; then all that was there is as it was.
    """
    check_tensorflow()
    with utils.silent_stderr():  # it has much to say about the machine
        import tensorflow as tf
    tf1, part = tf.compat.v1, os.path.join(folder, "part")
    shutil.rmtree(part, ignore_errors=True)  # from a run that was killed
    try:
        os.makedirs(part)
        with open(os.path.join(part, "hparams.json"), "w") as file:
            json.dump(hparams, file)
        with utils.silent_stderr(), tf.Graph().as_default(), tf1.Session() as session:
            for name, array in tensors(params):
                array = np.asarray(array)[None] if name.endswith("/w") else np.asarray(array)
                first = tf1.placeholder(tf.float32, array.shape)
                session.run(tf1.get_variable(name, initializer=first, use_resource=False).initializer, {first: array})
            tf1.train.Saver(save_relative_paths=True).save(session, os.path.join(part, "model.ckpt"))
        for name in os.listdir(part):
            os.replace(os.path.join(part, name), os.path.join(folder, name))
    except tf.errors.OpError as error:
        raise OSError(f"cannot write the model to {folder}, {reason(error, folder)}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def reason(error, folder):
    """Why TensorFlow could not write: its own words are long."""
    free = shutil.disk_usage(folder).free
    said = str(error).splitlines()[0].rpartition("; ")[2] if ";" in str(error) else type(error).__name__
    return f"where {free:,} bytes are free: {said}"


def save_folder(params, hparams, folder, model_size, models_dir):
    """Writes a model's seven files, with the vocabulary of the model that it comes from."""
    save_model(params, hparams, folder)
    for name in "encoder.json", "vocab.bpe":
        with open(os.path.join(utils.folder_of(model_size, models_dir), name), encoding="utf-8", newline="") as file:
            files.write_text(os.path.join(folder, name), file.read())
