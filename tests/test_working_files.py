"""Working files: gone after a killed process, left alone while one is at work, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from longeval.cache import sweep_temporary
from longeval.files import sweep, why_unwritable, working_folder, write_whole

KILLED = {
    "a file": "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); write_whole(sys.argv[1] + '/x', b'1')",
    "a folder": """
with working_folder(sys.argv[1]) as folder:
    os.mkdir(f"{folder}/below")
    open(f"{folder}/below/file", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
""",
}

WORKING = """
with working_folder(sys.argv[1]) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def start(code, folder):
    head = "import os, signal, sys\nfrom longeval.files import working_folder, write_whole\n"
    command = [sys.executable, "-c", head + code, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def names(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("kind", KILLED)
def test_what_a_killed_process_left_is_removed_at_once(kind, tmp_path):
    assert start(KILLED[kind], tmp_path).wait() == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    sweep(str(tmp_path))
    assert names(tmp_path) == []


def test_what_a_living_process_works_on_stays_until_it_ends(tmp_path):
    process = start(WORKING, tmp_path)
    folder = process.stdout.readline().strip()
    sweep(str(tmp_path))
    assert os.path.isdir(folder)
    process.kill()
    process.wait()
    with working_folder(str(tmp_path)) as own:
        assert names(tmp_path) == [os.path.basename(own)]
    assert names(tmp_path) == []


def test_nothing_else_is_touched(tmp_path):
    for name in (".building-site", ".longeval-notes", ".longeval-0123abcd-0123abcd.txt", "x"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".longeval-0123abcd-0123abcd").symlink_to(tmp_path / "x")
    before = names(tmp_path)
    sweep(str(tmp_path), str(tmp_path / "missing"))
    assert names(tmp_path) == before


def test_of_another_machine_or_boot_age_decides(tmp_path):
    for name, age_s in ((".longeval-0123abcd-00000001", 2 * 24 * 3600), (".longeval-0123abcd-00000002", 3600)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    sweep(str(tmp_path))
    assert names(tmp_path) == [".longeval-0123abcd-00000002"]


def test_a_name_that_a_sweep_has_just_taken_is_replaced_by_another(tmp_path, monkeypatch):
    import fcntl

    real, taken = fcntl.flock, []

    def flock(handle, how):
        if not taken:  # between making and locking, another process sweeps
            taken.append(os.listdir(tmp_path)[0])
            os.unlink(tmp_path / taken[0])
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    write_whole(str(tmp_path / "x"), b"content")
    assert taken and names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"content"


def test_a_working_folder_may_be_renamed_and_stays(tmp_path):
    with working_folder(str(tmp_path)) as folder:
        os.rename(folder, tmp_path / "done")
    assert names(tmp_path) == ["done"]


def test_the_temporary_folder_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with working_folder() as folder:
        assert os.path.dirname(folder) == str(tmp_path)
        assert os.stat(folder).st_mode & 0o777 == 0o700


def test_everywhere_in_the_cache_and_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "cache"))
    places = [tmp_path / place for place in ("tmp", "cache", "cache/models", "cache/tokens/0a", "cache/synthetic")]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        assert start(KILLED["a file"], place).wait() == -signal.SIGKILL
        assert any(name.startswith(".longeval-") for name in names(place))
    sweep_temporary()
    assert not any(name.startswith(".longeval-") for place in places for name in names(place))


def test_the_permissions_are_those_of_any_new_file(tmp_path):
    write_whole(str(tmp_path / "ours"), b"")
    (tmp_path / "theirs").touch()
    assert os.stat(tmp_path / "ours").st_mode == os.stat(tmp_path / "theirs").st_mode
    assert why_unwritable(str(tmp_path)) is None and names(tmp_path) == ["ours", "theirs"]
