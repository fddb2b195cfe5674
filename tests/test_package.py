"""pip install .: the wheel, in each way that pip installs it, in a folder whose files have our names."""

import os
import subprocess
import sys
import sysconfig
import zipfile

from conftest import ROOT
import pytest


@pytest.fixture(scope="module")
def expected():
    return subprocess.run([sys.executable, ROOT / "gpt2.py", "ROMEO:", "8", "shakespeare"], capture_output=True).stdout


def pip(*args, python=sys.executable, **env):
    quiet = "-q", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"
    subprocess.run([python, "-m", "pip", args[0], *quiet, *map(str, args[1:])], check=True, env={**os.environ, **env})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "-w", folder, ROOT)
    return next(folder.glob("*.whl"))


def test_what_the_wheel_holds(wheel):
    """The modules and the shipped model, in one package: no module of another name, nothing of beyond/."""
    names = zipfile.ZipFile(wheel).namelist()
    ours = [name for name in names if ".dist-info/" not in name]
    assert {name.partition("/")[0] for name in ours} == {"picogpt"}
    modules = {"__init__", "__main__", "cli", "encoder", "gpt2", "gpt2_pico", "tf_checkpoint", "utils"}
    assert {name for name in ours if name.endswith(".py")} == {f"picogpt/{name}.py" for name in modules}
    assert {name.rpartition("/")[2] for name in ours if "shakespeare" in name} >= {"encoder.json", "model.ckpt.index"}


@pytest.fixture(scope="module", params=["--target", "--prefix", "--user", "editable"])
def installed(request, wheel, tmp_path_factory):
    """(how, folder, run): run(*args, **kwargs) runs Python with what pip has installed into the folder."""
    folder, how, python = tmp_path_factory.mktemp("installed"), request.param, sys.executable
    env = {"PATH": os.environ["PATH"], "HOME": str(folder / "home")}
    if how == "--user":  # which an environment refuses: by the Python that it was made from, with our packages
        python, env["PYTHONUSERBASE"] = os.path.realpath(sys.executable), str(folder)
        env["PYTHONPATH"] = sysconfig.get_path("purelib")
        pip("install", how, wheel, python=python, PIP_BREAK_SYSTEM_PACKAGES="1", **env)
    elif how == "editable":
        pip("install", "--prefix", folder, "-e", ROOT)
        env["PYTHONPATH"] = next(folder.rglob("_picogpt.pth")).read_text()
    else:
        pip("install", how, folder, wheel)
        env["PYTHONPATH"] = str(next(folder.rglob("picogpt/utils.py")).parents[1])

    def run(*args, **kwargs):
        kwargs["env"] = {**env, **kwargs.get("env", {})}
        return subprocess.run([python, *args], capture_output=True, timeout=60, **kwargs)

    return how, folder, run


def test_the_shipped_model_is_found(installed, expected, tmp_path):
    _, _, run = installed
    done = run("-m", "picogpt", "ROMEO:", "8", "shakespeare", cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", expected)


def test_a_folder_with_modules_of_the_same_names(installed, expected, tmp_path):
    """The user's utils.py is imported by the user's code, and ours by ours; the encoder can be sent to a process."""
    _, _, run = installed
    for name in "cli", "encoder", "gpt2", "utils":
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    (tmp_path / "program.py").write_text(
        "import pickle, utils, picogpt, gpt2\n"
        "encoder, hparams, params = picogpt.load_encoder_hparams_and_params('shakespeare', 'models')\n"
        "encoder = pickle.loads(pickle.dumps(encoder))\n"
        "ids = picogpt.generate(encoder.encode('ROMEO:'), params, hparams['n_head'], 8)\n"
        "import utils as later\n"
        "assert utils.mine and gpt2.mine and later is utils\n"
        "print(encoder.decode(ids))\n"
    )
    done = run("program.py", cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", expected)


def test_errors_name_nothing_that_the_wheel_lacks(installed, tmp_path):
    """An installed picogpt does not send its user to beyond/, and keeps downloads out of the package."""
    how, folder, run = installed

    def files():
        return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in str(path)}

    before, args = files(), ["ROMEO:", "8", "124M", f"--models_dir={tmp_path / 'models'}"]
    done = run("-m", "picogpt", *args, cwd=tmp_path, env={"GPT2_MODELS_URL": "http://127.0.0.1:9"})
    message = done.stderr.decode()
    assert done.returncode == 1 and message.startswith("error: cannot fetch") and "shakespeare" in message
    assert ("beyond" in message) == (how == "editable") and files() == before
