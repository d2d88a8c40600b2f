"""What the package never does: run what it reads, or ask a network for anything but the documented weights."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
import urllib.request

import pytest
from offline import asked
from test_imports import MODULES

RUNS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
UNPICKLERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
OFF = ("shell", "allow_pickle", "trust_remote_code")  # words of calls that would run a text or a file
NETWORK = {"socket", "ssl", "http", "urllib.request", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "torch.hub"}
NETWORK |= {"huggingface_hub"}
MAY_ASK = {
    "reid_fast.models.download": {"http", "urllib.request"},
    "reid_fast.models.weights": {"torch.hub"},  # where its cache lies
    "reid_fast.stop": {"socket"},  # a pair within the process
}


def family(name, families):
    parts = name.split(".")
    return next(filter(families.__contains__, (".".join(parts[:n]) for n in range(1, len(parts) + 1))), None)


def names_of(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [ast.unparse(node)] if isinstance(node, ast.Attribute) else []


def running(tree):
    """What would run what it is given."""
    for node in ast.walk(tree):
        for name in names_of(node):
            if family(name, UNPICKLERS) and name not in ("pickle", "pickle.UnpicklingError"):
                yield name
        if isinstance(node, ast.Call):
            name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            unsafe = name == "torch.load" and words.get("weights_only") != "True"
            if name in RUNS or unsafe or any(words.get(word, "False") != "False" for word in OFF):
                yield name


def asking(tree):
    """The modules that reach a network."""
    return {found for node in ast.walk(tree) for name in names_of(node) if (found := family(name, NETWORK))}


def test_no_module_runs_what_it_reads_or_asks_a_network():
    for module, tree in MODULES.items():
        assert not list(running(tree)), module
        assert asking(tree) == MAY_ASK.get(module, set()), module


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=trusted)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(command, shell=True)",
        "yaml.load(text)",
        "pickle.load(file)",
        "from pickle import loads",
        "import joblib",
        "eval(text)",
        "os.system(command)",
    ],
)
def test_what_would_run_it_is_seen(line):
    assert list(running(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "import socket",
        "import urllib.request as asking",
        "from urllib import request",
        "from http.client import HTTPSConnection",
        "torch.hub.load(a, b)",
        "from huggingface_hub import hf_hub_download",
    ],
)
def test_what_would_ask_is_seen(line):
    assert asking(ast.parse(line))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("192.0.2.1", 53)),
        lambda: urllib.request.urlopen("http://example.invalid", timeout=1),
    ],
)
def test_no_test_gets_through_to_a_network(ask):
    with pytest.raises(OSError, match="a test asks the network"):
        ask()
    assert asked
    asked.clear()


def test_onnxruntime_sends_no_telemetry(tmp_path):
    """It would leave the number of this device in the cache when it is imported, and send it with the first model."""
    pytest.importorskip("onnxruntime")
    asked_for = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    command = [sys.executable, "-c", "import reid_fast, onnxruntime"]
    subprocess.run(command, env=asked_for | {"XDG_CACHE_HOME": str(tmp_path)}, check=True)
    assert not list(tmp_path.iterdir())
