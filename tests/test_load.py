import json
import os
import subprocess
import sys

from conftest import ROOT, TINY, flat, nested, write_checkpoint, write_model
import golden
import numpy as np
import pytest

import tf_checkpoint
import utils

SMALL = {
    "n_vocab": 97,
    "n_ctx": 16,
    "n_embd": 20,
    "n_head": 5,
    "n_layer": 11,
}  # h10 sorts before h2; some offsets are not multiples of 64


def tensors(hparams=SMALL):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in golden.shapes(**hparams).items()}


def assert_equal(params, expected):
    params, expected = flat(params), flat(expected)
    assert [(path, a.shape, a.dtype) for path, a in params] == [(path, a.shape, np.float32) for path, a in expected]
    for (_, a), (_, b) in zip(params, expected):
        np.testing.assert_array_equal(a, b)


def load_in_a_fresh_process(prefix, hparams=SMALL):
    """Loads the checkpoint and returns whether that took TensorFlow."""
    code = "import sys, json, utils; utils.load_gpt2_params_from_tf_ckpt(sys.argv[1], json.loads(sys.argv[2])); print('tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(prefix), json.dumps(hparams)], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stderr == b""
    return done.stdout.strip() == b"True"


def test_openais_layout_is_mapped_without_tensorflow(tmp_path):
    expected = tensors()
    write_checkpoint(tmp_path / "model.ckpt", expected)
    params = utils.load_gpt2_params_from_tf_ckpt(str(tmp_path / "model.ckpt"), SMALL)
    assert_equal(params, nested(expected))
    assert not load_in_a_fresh_process(tmp_path / "model.ckpt")
    for _, array in flat(params):  # views of one mapping, not copies
        while array.base is not None and not isinstance(array, np.memmap):
            array = array.base
        assert isinstance(array, np.memmap)


def test_writing_to_a_parameter_leaves_the_file_alone(tmp_path):
    write_checkpoint(tmp_path / "model.ckpt", tensors())
    before = (tmp_path / "model.ckpt.data-00000-of-00001").read_bytes()
    params = utils.load_gpt2_params_from_tf_ckpt(str(tmp_path / "model.ckpt"), SMALL)
    params["wte"][:] = 7
    assert (params["wte"] == 7).all() and (tmp_path / "model.ckpt.data-00000-of-00001").read_bytes() == before


@pytest.mark.parametrize("kind", ["reversed", "swapped", "extra", "flat", "one of them"])
def test_any_other_layout_gives_the_same(tmp_path, kind):
    expected = tensors()
    written = dict(expected)
    if kind == "reversed":
        written = dict(reversed(expected.items()))
    elif kind == "swapped":  # two tensors of the same size, which differ in nothing but their offsets
        names = list(expected)
        i, j = names.index("model/h0/ln_1/b"), names.index("model/h10/ln_2/g")
        names[i], names[j] = names[j], names[i]
        written = {name: expected[name] for name in names}
    elif kind == "extra":
        written = {"global_step": np.int64(3), **expected, "model/wte/Adam": expected["model/wte"] * 2}
    elif kind == "one of them":
        written["model/h3/mlp/c_fc/b"] = written["model/h3/mlp/c_fc/b"].astype(np.float64)
    elif kind == "flat":  # without OpenAI's leading axis
        written = {name: array.squeeze(0) if array.ndim == 3 else array for name, array in expected.items()}
    write_checkpoint(tmp_path / "model.ckpt", written)
    assert_equal(utils.load_gpt2_params_from_tf_ckpt(str(tmp_path / "model.ckpt"), SMALL), nested(expected))
    assert not load_in_a_fresh_process(tmp_path / "model.ckpt")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_types_and_data_files_are_read_as_tensorflow_reads_them(tmp_path, dtype, shards):
    import tensorflow as tf

    folder = tmp_path / "a [b] *?"
    folder.mkdir()
    prefix = str(folder / "model.ckpt")
    write_checkpoint(prefix, {name: tf.cast(array, dtype) for name, array in tensors().items()}, shards)
    reader = tf_reader(prefix, tmp_path)
    expected = {name: reader.get_tensor(name).astype(np.float32) for name in tensors()}
    assert_equal(utils.load_gpt2_params_from_tf_ckpt(prefix, SMALL), nested(expected))
    assert not load_in_a_fresh_process(prefix)
    data = folder / f"model.ckpt.data-{shards - 1:05d}-of-{shards:05d}"
    size = data.stat().st_size
    os.truncate(data, size - 2)
    with pytest.raises(ValueError, match=f"it has {size - 2:,} bytes, but its tensors need {size:,}"):
        utils.load_gpt2_params_from_tf_ckpt(prefix, SMALL)
    data.unlink()
    with pytest.raises(FileNotFoundError, match=f"data-{shards - 1:05d}-of-{shards:05d}"):
        utils.load_gpt2_params_from_tf_ckpt(prefix, SMALL)


def test_a_model_folder_with_several_data_files(own_models_dir):
    """The whole folder, and what is said where one of the files is missing."""
    _, _, expected = utils.load_encoder_hparams_and_params("tiny", str(own_models_dir))
    folder = own_models_dir / "tiny"
    weights = {f"model/{name}": np.array(array) for name, array in utils.named_arrays(expected)}
    (folder / utils.DATA).unlink()
    write_checkpoint(folder / "model.ckpt", weights, 3)
    _, _, params = utils.load_encoder_hparams_and_params("tiny", str(own_models_dir))
    assert_equal(params, expected)
    (folder / "model.ckpt.data-00001-of-00003").unlink()
    with pytest.raises(FileNotFoundError, match="data-00001-of-00003"):
        utils.load_encoder_hparams_and_params("tiny", str(own_models_dir))


def tf_reader(prefix, folder):
    """TensorFlow's reader of a checkpoint whose folder has a name that TensorFlow would take for a pattern."""
    import tensorflow as tf

    os.symlink(os.path.dirname(prefix), folder / "link")
    return tf.train.load_checkpoint(str(folder / "link" / os.path.basename(prefix)))


def write_partitioned(prefix, axes):
    """The tensors as a checkpoint of TensorFlow 1, those in {name: axis} as variables in three parts along that axis."""
    import tensorflow as tf

    tf1, expected = tf.compat.v1, tensors()
    with tf.Graph().as_default(), tf1.Session() as session:
        for name, array in expected.items():

            def initial(shape, dtype=None, partition_info=None, array=array):
                offsets = partition_info.var_offset if partition_info else [0] * len(shape)
                return tf.constant(array[tuple(slice(i, i + n) for i, n in zip(offsets, shape))])

            partitioner = tf1.fixed_size_partitioner(3, axes[name]) if name in axes else None
            tf1.get_variable(name, array.shape, initializer=initial, partitioner=partitioner)
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver().save(session, prefix, write_meta_graph=False)
    return expected


def test_slices_of_partitioned_variables_are_read_by_tensorflow(tmp_path):
    folder = tmp_path / "a [b] *?"  # which TensorFlow takes for a pattern
    folder.mkdir()
    prefix = str(folder / "model.ckpt")
    expected = write_partitioned(prefix, {"model/wte": 0, "model/h3/mlp/c_fc/w": 2, "model/h3/mlp/c_fc/b": 0})
    assert_equal(utils.load_gpt2_params_from_tf_ckpt(prefix, SMALL), nested(expected))
    assert load_in_a_fresh_process(prefix)  # silently
    data = f"{prefix}.data-00000-of-00001"
    os.truncate(data, os.path.getsize(data) // 2)
    with pytest.raises(ValueError, match="TensorFlow cannot read"):
        utils.load_gpt2_params_from_tf_ckpt(prefix, SMALL)


def test_slices_without_tensorflow(tmp_path, monkeypatch):
    prefix = str(tmp_path / "model.ckpt")
    write_partitioned(prefix, {"model/wte": 0})
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # importing it fails
    with pytest.raises(ValueError, match="model.ckpt stores tensors in slices, .*: pip install tensorflow"):
        utils.load_gpt2_params_from_tf_ckpt(prefix, SMALL)


def test_slices_of_other_variables_do_not_take_tensorflow(tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    write_partitioned(prefix, {"model/wte": 0})
    names = [f"model/{name}" for name in utils.shapes_of(**SMALL) if name != "wte"]
    found = tf_checkpoint.read_tensors(prefix, tf_checkpoint.read_index(prefix), names)
    assert all(isinstance(array, np.ndarray) and (array == tensors()[name]).all() for name, array in found.items())
    assert set(found) == set(names)


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda name, array: (name.replace("ln_1/g", "ln_1/scale"), array), "ln_1/g"),
        (
            lambda name, array: (name, array.swapaxes(-1, -2) if name.endswith("c_proj/w") else array),
            r"c_proj/w \[1, 20, 80\] instead of \[80, 20\]",
        ),
        (lambda name, array: (name, array.astype(np.int32)), "unsupported DataType 3 in wte: float32"),
        (
            lambda name, array: (name, array.astype(np.int32) if name == "model/h1/ln_2/b" else array),
            "unsupported DataType 3 in h1/ln_2/b",
        ),
        (lambda name, array: (name, array[:, None] if array.ndim == 1 else array), "instead of"),
        (
            lambda name, array: (name.replace("model/", "gpt2/"), array),
            "model/h10/ln_1/g is missing, but n_layer is 11",
        ),
    ],
)
def test_names_types_and_shapes_are_read_not_guessed(tmp_path, change, part):
    """Checkpoints whose tensors have the right sizes in the right order, but other names, types or shapes."""
    write_checkpoint(tmp_path / "model.ckpt", dict(change(*one) for one in tensors().items()))
    with pytest.raises(ValueError, match=part):
        utils.load_gpt2_params_from_tf_ckpt(str(tmp_path / "model.ckpt"), SMALL)


def test_the_index_is_read_as_tensorflow_reads_it(tmp_path):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    for n in 1, 15, 16, 17, 3000:  # restarts of the shared prefixes, and more than one block
        written = {
            f"{'/'.join('ab'[i] for i in rng.integers(0, 2, 9))}/{i}": np.zeros(rng.integers(0, 4, 2), np.float32)
            for i in range(n)
        }
        write_checkpoint(tmp_path / "x", written)
        reader = tf.train.load_checkpoint(str(tmp_path / "x"))
        entries = tf_checkpoint.read_index(str(tmp_path / "x"))
        assert {name: entry.shape for name, entry in entries.items()} == reader.get_variable_to_shape_map()


def test_an_index_with_any_byte_changed_is_refused_or_the_same(tmp_path):
    """A changed index never causes another exception or other numbers."""
    write_checkpoint(tmp_path / "model.ckpt", tensors())
    path, expected = tmp_path / "model.ckpt.index", nested(tensors())
    good, rng = path.read_bytes(), np.random.default_rng(0)
    for i in rng.choice(len(good), 300, replace=False):
        path.write_bytes(good[:i] + bytes([good[i] ^ rng.integers(1, 256)]) + good[i + 1 :])
        try:
            found = utils.load_gpt2_params_from_tf_ckpt(str(tmp_path / "model.ckpt"), SMALL)
        except ValueError:
            continue
        assert_equal(found, expected)


def test_both_ways_give_the_same(tmp_path):
    write_checkpoint(tmp_path / "model.ckpt", tensors())
    prefix = str(tmp_path / "model.ckpt")
    mapped = tf_checkpoint.read_tensors(prefix, tf_checkpoint.read_index(prefix), list(tensors()))
    read = tf_checkpoint.read_with_tensorflow(prefix, list(tensors()))
    assert mapped.keys() == read.keys()
    for name in mapped:
        np.testing.assert_array_equal(mapped[name], read[name])


def test_a_checkpoint_that_is_truncated_or_does_not_fit(tmp_path):
    prefix = str(tmp_path / "model.ckpt")
    write_checkpoint(prefix, tensors())
    data, index = tmp_path / "model.ckpt.data-00000-of-00001", tmp_path / "model.ckpt.index"
    for n_layer in 12, 3_000_000:  # the latter at once
        with pytest.raises(ValueError, match=f"model/h{n_layer - 1}/ln_1/g is missing, but n_layer is {n_layer}"):
            utils.load_gpt2_params_from_tf_ckpt(prefix, {**SMALL, "n_layer": n_layer})
    with pytest.raises(ValueError, match=r"wpe \[16, 20\] instead of \[17, 20\]"):
        utils.load_gpt2_params_from_tf_ckpt(prefix, {**SMALL, "n_ctx": 17})
    size = data.stat().st_size
    for found in size - 4, size + 4, 0:
        os.truncate(data, found)
        with pytest.raises(ValueError, match=f"it has {found:,} bytes, but its tensors need {size:,}"):
            utils.load_gpt2_params_from_tf_ckpt(prefix, SMALL)
    for n in 100, 1, 0:
        os.truncate(index, n)
        with pytest.raises(ValueError, match="model.ckpt.index is damaged"):
            utils.load_gpt2_params_from_tf_ckpt(prefix, SMALL)
    index.unlink()
    with pytest.raises(FileNotFoundError):
        utils.load_gpt2_params_from_tf_ckpt(prefix, SMALL)


def test_params_as_names_and_back():
    arrays = {name.removeprefix("model/"): array for name, array in tensors().items()}
    params = utils.nested(arrays)
    assert len(params["blocks"]) == 11 and set(params["blocks"][10]["attn"]["c_proj"]) == {"w", "b"}
    assert params["blocks"][3]["ln_1"]["g"] is arrays["h3/ln_1/g"] and params["ln_f"]["b"] is arrays["ln_f/b"]
    assert dict(utils.named_arrays(params)) == arrays  # the same objects
    leaf = (np.zeros(2), 7)  # anything else than a dict is a leaf, such as a quantized matrix
    partial = {"blocks": [{}, {"mlp": {"c_fc": leaf}}]}
    assert list(utils.named_arrays(partial)) == [("h1/mlp/c_fc", leaf)]
    assert utils.nested({"h1/mlp/c_fc": leaf}) == partial and utils.nested({}) == {"blocks": []}


# --- a folder as a model ---


def test_a_folder_is_a_model_by_its_name(tmp_path):
    expected = write_model(tmp_path / "my model-1.5", TINY)
    encoder, hparams, params = utils.load_encoder_hparams_and_params("my model-1.5", str(tmp_path))
    assert hparams == TINY and encoder.encode(" theorized") == [18765, 1143]
    assert_equal(params, nested(expected))


def test_the_name_of_a_model_is_a_name(own_models_dir):
    for name in "", ".", "..", "../tiny", "tiny/", "/tmp", "a/b":
        with pytest.raises(ValueError, match="must be a name without a path; the path goes into models_dir"):
            utils.load_encoder_hparams_and_params(name, str(own_models_dir))
    for name in "125M", "tinyy", "124m":
        with pytest.raises(
            ValueError, match=f"unknown model_size='{name}': choose one of 124M, 355M, 774M, 1558M, tiny, or"
        ):
            utils.load_encoder_hparams_and_params(name, str(own_models_dir))
    with pytest.raises(ValueError, match="choose one of 124M, 355M, 774M, 1558M, or"):
        utils.load_encoder_hparams_and_params("tiny", str(own_models_dir / "nowhere"))


@pytest.mark.parametrize("name", utils.FILES)
def test_a_model_of_the_user_that_lacks_a_file(own_models_dir, name):
    (own_models_dir / "tiny" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"tiny lacks {name}: a model is a folder with "):
        utils.load_encoder_hparams_and_params("tiny", str(own_models_dir))


@pytest.mark.parametrize("name", ["encoder.json", "hparams.json", utils.DATA, "model.ckpt.index"])
def test_a_model_of_the_user_that_is_truncated(own_models_dir, name):
    path = own_models_dir / "tiny" / name
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match="is damaged"):
        utils.load_encoder_hparams_and_params("tiny", str(own_models_dir))


@pytest.mark.parametrize(
    "change", [{"n_head": 5}, {"n_layer": 0}, {"n_ctx": "64"}, {"n_embd": 12.0}, {"n_vocab": None}]
)
def test_hparams_that_make_no_sense(own_models_dir, change):
    (own_models_dir / "tiny" / "hparams.json").write_text(json.dumps({**TINY, **change}))
    with pytest.raises(ValueError, match="must contain n_vocab, n_ctx, n_embd, n_head, n_layer as positive integers"):
        utils.load_encoder_hparams_and_params("tiny", str(own_models_dir))


def test_a_vocabulary_larger_than_the_model(own_models_dir):
    (own_models_dir / "tiny" / "hparams.json").write_text(json.dumps({**TINY, "n_vocab": 50000}))
    with pytest.raises(ValueError, match="50257 tokens, more than n_vocab=50000"):
        utils.load_encoder_hparams_and_params("tiny", str(own_models_dir))


def test_models_beside_the_program_are_found_from_anywhere(own_models_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert utils.load_encoder_hparams_and_params("tiny", "models")[1] == TINY  # a folder "models" here has it
    monkeypatch.chdir("/")
    monkeypatch.setattr(utils, "__file__", str(tmp_path / "utils.py"))
    assert utils.load_encoder_hparams_and_params("tiny", "models")[1] == TINY
    with pytest.raises(ValueError, match="unknown"):
        utils.load_encoder_hparams_and_params("tiny", "models/")


def test_where_models_are_looked_for(own_models_dir, tmp_path, monkeypatch):
    """If installed by pip, first the models in the package, then those that were downloaded."""
    package = tmp_path / "site-packages" / "picogpt"
    package.mkdir(parents=True)
    monkeypatch.chdir("/")
    monkeypatch.setattr(utils, "__file__", str(package / "utils.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PICOGPT_MODELS", raising=False)
    if sys.platform == "linux":
        assert utils.folder_of("124M", "models") == str(tmp_path / "cache" / "picogpt" / "models" / "124M")
    monkeypatch.setenv("PICOGPT_MODELS", str(tmp_path / "mine"))
    assert utils.folder_of("124M", "models") == str(tmp_path / "mine" / "124M")
    os.rename(own_models_dir, package / "models")
    assert utils.load_encoder_hparams_and_params("tiny", "models")[1] == TINY
