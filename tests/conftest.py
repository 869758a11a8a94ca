"""Fixtures of all tests: a tiny model as a folder, documents for it, and a cache of the tests' own."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from tiny import make_text, save_tiny_llama

# The same examples each time, so that a change is judged by what it changes; HYPOTHESIS_PROFILE=default seeks new ones.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# Jobs in the background of a shell ignore Ctrl-C, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_llama_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-bos", bos=True)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Three documents, of very different lengths, as JSONL."""
    path = tmp_path / "documents.jsonl"
    lines = [json.dumps({"text": make_text(num_words, seed)}) for seed, num_words in enumerate((400, 60, 250))]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(autouse=True, scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees or touches the user's cache, unless it is about the embedded model (`user_cache`)."""
    os.environ.setdefault("LONGEVAL_USER_CACHE", os.environ.get("LONGEVAL_CACHE", ""))
    os.environ["LONGEVAL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def user_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache: where the embedded model is kept between test runs."""
    own = os.environ.get("LONGEVAL_USER_CACHE", "")
    if own:
        monkeypatch.setenv("LONGEVAL_CACHE", own)
    else:
        monkeypatch.delenv("LONGEVAL_CACHE")


@pytest.fixture
def request_spec(tiny_llama, documents):
    def make(**changes):
        fields = {
            "model": (str(tiny_llama),),
            "pe": ("none",),
            "lengths": (32, 64, 128),
            "data": (str(documents),),
            "dtype": "float32",
        }
        from longeval.studies.ppl.request import PplRequest

        return PplRequest(**(fields | changes))

    return make


@pytest.fixture
def store(tmp_path):
    from longeval.store.folder import Store

    return Store(str(tmp_path / "run"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server in this process, which takes any credentials."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a new, empty bucket; the environment says where it is, for child processes too."""
    import s3fs

    for name, value in (("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    bucket = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, one for all tests marked `browser`."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed: make setup")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    if chromium is None:
        pytest.skip("there is no Chromium: make setup-browser")
    # As root, as in most containers, Chromium has no sandbox of its own.
    flags = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()
