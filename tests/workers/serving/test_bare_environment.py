"""`pip install weir-ps[serve]` alone, in an environment that has nothing else, serves a bundle."""

import json
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from tests.test_structure import ROOT
from tests.workers.serving.summing import PRICES, USERS, logits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # kernels are compiled anew for another installation


def test_serving_needs_nothing_but_its_extra(bundle, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    copy = tmp_path / "weir"  # pip builds inside the folder that it is given
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, files.split("\0")):
        if name.startswith(("ps/", "workers/")) or name in ("pyproject.toml", "README.md", "LICENSE"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", f"{copy}[serve]"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("packages cannot be reached from here")
    assert done.returncode == 0, done.stderr
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True).stdout
    packages = {each["name"].lower() for each in json.loads(listed)}
    assert not packages & {"torch", "ray", "pyarrow", "onnx", "pandas", "fastapi"}
    command = [tmp_path / "venv/bin/weir", "serve", bundle.directory, "--grpc-port", "0", "--http-port", "0", "--json"]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        url = json.loads(server.stdout.readline())["http"]
        body = {"shared": {"tags": ""}, "candidates": {"user": USERS, "price": PRICES}}
        with urllib.request.urlopen(f"{url}/v1/predict", json.dumps(body).encode()) as answer:
            scores = json.loads(answer.read())["scores"]["click"]
    finally:
        server.terminate()
        assert server.wait(60) == 0
        server.stdout.close()
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits())), rtol=1e-5)
