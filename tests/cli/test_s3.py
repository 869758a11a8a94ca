"""A run folder in S3 from the first command to the report, with a server on this machine."""

from __future__ import annotations

import socket

import pytest
import s3fs
from command_lines import command_line, json_of
from ports import free_port

import longeval
from longeval.cli.app import run_app
from longeval.store import files


@pytest.fixture
def arguments(tiny_llama, documents, s3_bucket, here):
    small = {"model": str(tiny_llama), "pe": "none,yarn", "lengths": "64,128", "data": str(documents)}
    return command_line("ppl", **small, dtype="float32", out=f"{s3_bucket}/runs/one")


@pytest.fixture
def elsewhere(monkeypatch):
    """Sets the address of the server, which clients of another test don't know."""

    def set_to(address):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()

    yield set_to
    s3fs.S3FileSystem.clear_instance_cache()


def computed(capsys):
    """What was said of how many cells were computed."""
    return next(line for line in capsys.readouterr().err.splitlines() if "computed" in line)


def test_a_run_is_stored_resumed_repeated_read_and_reported(arguments, s3_bucket, capsys, here, quick_pictures):
    folder = f"{s3_bucket}/runs/one"
    first = json_of(capsys, arguments)
    assert len(first) == 8
    assert run_app(arguments) == 0
    assert "0 cells computed, 4 stored already" in computed(capsys)
    assert run_app(["run", folder]) == 0
    assert "0 cells computed, 4 stored already" in computed(capsys)
    s3fs.S3FileSystem().rm_file(f"{folder}/nll/{first[0]['cell']}.npz")
    again = json_of(capsys, ["run", f"{folder}/spec.yaml"])
    assert again[0]["value"] == pytest.approx(first[0]["value"], rel=1e-6)
    assert len(s3fs.S3FileSystem().ls(f"{folder}/nll", refresh=True)) == 4
    assert run_app(["report", folder, "--out", "report.md"]) == 0
    assert "4 cells (4 done)" in (here / "report.md").read_text()
    results = longeval.load(folder)
    assert {record.value for record in results.records} == {record["value"] for record in again}


def test_a_report_of_an_address_says_that_it_needs_a_local_place(arguments, s3_bucket, capsys, refused):
    assert run_app([*arguments, "-q"]) == 0
    assert "--out report.md" in refused(["report", f"{s3_bucket}/runs/one"])


def test_a_bucket_or_file_that_is_not_there_is_told(arguments, s3_bucket, refused):
    arguments[-1] = "s3://no-such-bucket/run"
    assert "s3://no-such-bucket/run" in refused(arguments)
    for address in ("s3://no-such-bucket/run", f"{s3_bucket}/run", f"{s3_bucket}/request.yaml"):
        assert address in refused(["run", address])
    assert "s3://no-such-bucket/run" in refused(["report", "s3://no-such-bucket/run", "--out", "report.md"])


def test_missing_credentials_are_told(arguments, s3_bucket, refused, elsewhere, s3_server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    elsewhere(s3_server)
    assert "credentials" in refused(arguments)


def test_a_server_that_refuses_connections_is_told(arguments, refused, elsewhere, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    address = f"http://127.0.0.1:{free_port()}"
    elsewhere(address)
    assert address in refused(arguments)


def test_a_server_that_never_answers_is_told_in_time(arguments, s3_bucket, refused, elsewhere, monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        elsewhere(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "no answer" in refused(arguments)
        assert "no answer" in refused(["report", f"{s3_bucket}/runs/one", "--out", "report.md"])
