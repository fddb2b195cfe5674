import base64
import html
import json
import re
import shutil
import subprocess

from conftest import ROOT, assert_error, command, in_process, nested
import golden
import matplotlib.image
import numpy as np
import pytest

from beyond import attention
from encoder import Encoder
import gpt2
import gpt2_pico
import utils

HPARAMS = golden.CONFIGS["wide"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROMPT = 'Not all heroes wear capes </script><b>"&amp;" 勇者\n\tend'


def weights_of(ids, params, n_head):
    """[n_layer, n_head, n, n] in float64, head by head, from the formula."""
    x, n, found = (params["wte"][ids] + params["wpe"][: len(ids)]).astype(np.float64), len(ids), []
    for block in params["blocks"]:
        y = gpt2_pico.layer_norm(x, **block["ln_1"])
        q, k, v = np.split(y @ block["attn"]["c_attn"]["w"] + block["attn"]["c_attn"]["b"], 3, axis=-1)
        heads, d = [], x.shape[1] // n_head
        for i in range(n_head):
            part = slice(i * d, (i + 1) * d)
            scores = np.where(np.tri(n), q[:, part] @ k[:, part].T / np.sqrt(d), -np.inf)
            heads.append(np.exp(scores - scores.max(axis=-1, keepdims=True)))
            heads[-1] /= heads[-1].sum(axis=-1, keepdims=True)
        found.append(heads)
        outputs = np.concatenate([head @ v[:, i * d : (i + 1) * d] for i, head in enumerate(heads)], axis=-1)
        x = x + outputs @ block["attn"]["c_proj"]["w"] + block["attn"]["c_proj"]["b"]
        x = x + gpt2_pico.mlp(gpt2_pico.layer_norm(x, **block["ln_2"]), **block["mlp"])
    return np.array(found)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', page)[1])


@pytest.mark.parametrize("n", [1, 2, 30, 256, 257, 600])
def test_the_weights_are_those_of_the_formula(n):
    """Also for more than 256 queries, which gpt2.causal_attention processes in chunks."""
    hparams = {**HPARAMS, "n_ctx": 600}
    params, ids = nested(golden.weights(hparams)), np.arange(n) * 29 % 61
    weights, states = attention.look(ids, params, 3)
    np.testing.assert_allclose(weights, weights_of(ids, params, 3), atol=2e-4)
    np.testing.assert_allclose(
        gpt2.layer_norm(states[-1], **params["ln_f"]) @ params["wte"].T, gpt2.gpt2(ids, **params, n_head=3), atol=1e-5
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    done = command(
        "-m", "beyond.attention", PROMPT, f"--out={path}", "--model_size=shakespeare", program=None, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr.decode()
    n = len(data_of(path.read_text("utf-8"))["ids"])
    assert (
        done.stdout.decode() == f"{path}: {n} tokens, {path.stat().st_size:,} bytes\n"
        and len(list(path.parent.iterdir())) == 1
    )
    return path


def test_the_numbers_on_the_page_are_the_models(page):
    encoder, hparams, params = utils.load_encoder_hparams_and_params("shakespeare", str(ROOT / "models"))
    data, ids = data_of(page.read_text("utf-8")), encoder.encode(PROMPT)
    assert data["ids"] == ids and (data["nLayer"], data["nHead"]) == (6, 6)
    n, expected = len(ids), weights_of(np.array(ids), params, 6)
    found = (np.frombuffer(base64.b64decode(data["weights"]), np.uint8).reshape(6, 6, -1) / 255) ** 2
    for layer in range(6):
        for head in range(6):
            rows = np.split(found[layer, head], np.cumsum(range(1, n)))
            assert all(
                abs(row.sum() - 1) < 0.02 and np.abs(row - expected[layer, head, i, : i + 1]).max() < 0.0045
                for i, row in enumerate(rows)
            )
    probs = gpt2.softmax(gpt2.gpt2(ids, **params, n_head=6))
    for i in range(n):
        best = np.argsort(-probs[i], kind="stable")[:10]
        assert data["next"][5][i] == best.tolist() and np.abs(data["probs"][5][i] - probs[i, best]).max() < 6e-5
    short = {**params, "blocks": params["blocks"][:2]}  # the prediction if the model ended at its second block
    best = np.argsort(-gpt2_pico.gpt2(np.array(ids), **short, n_head=6)[7])[:10]
    assert data["next"][1][7] == best.tolist()


def test_no_token_ends_the_script():
    params, encoder = (
        nested(golden.weights(HPARAMS)),
        Encoder({"</script>": 0, **{chr(i + 64): i for i in range(1, 61)}}, []),
    )
    page = attention.page([0, 1, 2], encoder, params, 3)
    with open(attention.TEMPLATE, encoding="utf-8") as file:
        assert page.count("</script>") == file.read().count("</script>")
    assert data_of(page)["names"]["0"] == "</script>"


def test_tokens_are_visible():
    names = {
        "Ġthe": "·the",
        "Ċ": "⏎",
        "ĉa": "⇥a",
        "Ģ": "80",
        "åĭ": "e5 8b",
        "åĭĩ": "勇",
        "<|endoftext|>": "<|endoftext|>",
        "": "",
    }
    assert {token: attention.visible(token) for token in names} == names


def open_page(path, *flags, script="", name="look"):
    """The page's HTML after its own script, and then this one, has run."""
    copy = path.parent / f"{name}.html"
    copy.write_text(path.read_text("utf-8").replace("</html>", f"<script>{script}</script></html>"), "utf-8")
    place = f"file://{copy}#layer=2&head=3&token=6&key=2"
    args = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", *flags, place]
    return subprocess.run(args, capture_output=True, timeout=100, check=True).stdout.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_shows_it(page):
    data = data_of(page.read_text("utf-8"))
    shown = open_page(page, "--dump-dom")
    buttons = re.findall(
        r'<button[^>]*aria-pressed="(\w+)"[^>]*>([^<]*)<small>(\d+)</small></button>',
        re.sub(r"<script.*", "", shown, flags=re.S),
    )
    assert [int(id) for _, _, id in buttons] == data["ids"] and [
        i for i, (on, *_) in enumerate(buttons) if on == "true"
    ] == [5]
    value = (
        base64.b64decode(data["weights"])[(1 * 6 + 2) * len(data["ids"]) * (len(data["ids"]) + 1) // 2 + 15 + 1] / 255
    ) ** 2
    names = [data["names"][str(id)] for id in data["ids"]]
    assert html.unescape(buttons[12][1]) == names[12]
    assert f"{names[5]} (token 6) attends to {names[1]} (token 2): {value:.2f}" in shown and "Block 2, head 3" in shown
    rows = re.findall(r'<th scope="row">(.*?)</th>', shown)
    assert rows == ["output", "block 5", "block 4", "block 3", "block 2", "block 1"] and shown.count("<td") == 60


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_keys_and_narrow_screens(page):
    script = """
    const map = document.getElementById("large");
    for (const key of ["ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp"])
      map.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
    document.querySelectorAll("#heads button")[33].click();
    document.body.dataset.found = location.hash + " " + (document.documentElement.scrollWidth <= innerWidth) + " " + innerWidth;"""
    frame = page.parent / "frame.html"
    open_page(page, "--dump-dom", script=script, name="keys")
    frame.write_text(
        '<iframe src="keys.html#layer=2&head=3&token=6&key=2" style="width:360px;height:600px;border:0" onload="'
        'document.title = this.contentDocument.body.dataset.found"></iframe>'
    )
    args = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--virtual-time-budget=4000",
        "--dump-dom",
    ]
    shown = subprocess.run([*args, f"file://{frame}"], capture_output=True, timeout=100, check=True).stdout.decode()
    assert "<title>#layer=6&amp;head=4&amp;token=5&amp;key=4 true 360</title>" in shown


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_picture_of_it_is_not_blank(page):
    open_page(page, f"--screenshot={page.parent}/shot.png", "--window-size=1200,900")
    picture = matplotlib.image.imread(page.parent / "shot.png")[:, :, :3]
    blue = (picture[:, :, 2] > picture[:, :, 0] + 0.2).mean()
    assert (
        picture.shape[:2] == (900, 1200) and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50 and 0.02 < blue < 0.6
    )


def test_a_page_of_200_tokens_in_the_shape_of_124m_is_small(tmp_path):
    class Words:
        decoder = {i: f"Ġword{i}" for i in range(1024)}

    hparams = {"n_vocab": 1024, "n_ctx": 200, "n_embd": 48, "n_head": 12, "n_layer": 12}
    content = attention.page(np.arange(200) * 7 % 1024, Words, nested(golden.weights(hparams)), 12)
    assert len(content.encode()) < 10e6 and "{DATA}" not in content
    assert not re.search(r"(src|href)=|https?:", content)  # nothing from the network


def test_errors(tmp_path):
    def run(*args):
        return in_process(attention.main, *args, "--model_size=shakespeare")

    assert_error(run("word " * 300, f"--out={tmp_path}/x"), "256", "shorten the prompt")
    assert_error(run("word", f"--out={tmp_path}/none/x"), "none/x", "No such file")
    done = run("", f"--out={tmp_path}/x")
    assert done.returncode == 0 and data_of((tmp_path / "x").read_text("utf-8"))["ids"] == [1023]
