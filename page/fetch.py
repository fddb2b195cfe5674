"""Fills a folder with what the page takes from a CDN: Pyodide, its NumPy and regex, CodeMirror, as in page/lib.json.

    python -m page.fetch --out=lib
    python -m http.server

Then http://localhost:8000/page/?lib=../lib needs no CDN, and no network at all. Where packages can be had and the CDN
cannot, --source=packages takes the same files out of them: npm's, and a wheel on PyPI that carries Pyodide's NumPy.
Each file is checked by its SHA-256, as the browser does it.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

from beyond.files import writing
import cli
import utils

TABLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib.json")
CDN = "https://cdn.jsdelivr.net/"
WHEEL = "open-webui==0.12.4"  # has Pyodide 314.0.3 as it is on the CDN


def missing(out, table):
    """The rows of lib.json whose file is not in a folder, or is another."""
    paths = [(one, os.path.join(out, one["name"])) for one in table]
    return [
        one for one, path in paths if not os.path.isfile(path) or utils.problem_of(path, one["sha256"], one["bytes"])
    ]


def from_cdn(address):
    """A function of a row of lib.json that gives its bytes, from a CDN or what has the same paths."""
    import requests

    def read(one):
        url = address.rstrip("/") + "/" + one["cdn"]
        try:
            response = requests.get(url, timeout=utils.TIMEOUT)
            response.raise_for_status()
        except requests.RequestException as error:
            raise OSError(f"cannot fetch {url}: {error}; check the network, or take --source=packages") from None
        return response.content

    return read


def from_packages(work):
    """The same, from packages of npm and PyPI, which are downloaded to a folder."""
    packages = {}

    def package(name, *command):
        if name not in packages:
            folder = os.path.join(work, str(len(packages)))
            os.mkdir(folder)
            try:
                done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            except FileNotFoundError:
                raise OSError(
                    f"cannot get {name}: {command[0]} is not installed; install it, or leave out --source"
                ) from None
            if done.returncode or not os.listdir(folder):
                said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise OSError(f"cannot get {name} with {os.path.basename(command[0])}: {said}; check the network")
            packages[name] = os.path.join(folder, os.listdir(folder)[0])
        return packages[name]

    def read(one):
        if not one["cdn"].startswith("npm/"):
            path = package(WHEEL, sys.executable, "-m", "pip", "download", "-q", "--no-deps", WHEEL)
            with zipfile.ZipFile(path) as wheel:
                return wheel.read(f"open_webui/frontend/pyodide/{one['name']}")
        name, _, rest = one["cdn"].removeprefix("npm/").rpartition("@")
        version, path = rest.split("/", 1)
        with tarfile.open(package(f"{name}@{version}", "npm", "pack", "--silent", f"{name}@{version}")) as archive:
            return archive.extractfile(f"package/{path}").read()

    return read


def main(out="lib", source=CDN):
    """Fills a folder with what the page takes from a CDN, 18 MB, so that it needs none.

    Args:
        out: The folder, which is made. Files that are there and right are kept.
        source: The address of a CDN that has jsDelivr's paths, or "packages": npm and PyPI.
    """
    with open(TABLE, encoding="utf-8") as file:
        table = json.load(file)
    if source != "packages" and not source.startswith(("http://", "https://")):
        raise ValueError(f'source={source!r} must be the address of a CDN, or "packages"')
    os.makedirs(out, exist_ok=True)
    with utils.locked(out), tempfile.TemporaryDirectory() as work:
        wanted = missing(out, table)
        read = from_packages(work) if source == "packages" else from_cdn(source)
        for one in wanted:
            path = os.path.join(out, one["name"])
            data = read(one)

            def write(part, data=data, one=one):
                with open(part, "wb") as file:
                    file.write(data)
                if problem := utils.problem_of(part, one["sha256"], one["bytes"]):
                    raise ValueError(
                        f"{one['name']} from {source} {problem}: it was not kept; try again, or another source"
                    )

            writing.write_whole(path, write)
    size = sum(one["bytes"] for one in table) / 1e6
    return f"{out}: {len(table)} files, {size:.1f} MB, {len(wanted)} of them new"


if __name__ == "__main__":
    cli.run(main)
