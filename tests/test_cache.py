"""The cache folder: where it is, whole and sealed files, digests, and a folder that can't be written."""

import hashlib
import json
import logging
import os
import time

import pytest

from longeval import cache


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_folder_comes_from_own_variable_then_xdg_then_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LONGEVAL_CACHE", "~/own")
    assert cache.cache_dir() == str(tmp_path / "home" / "own")
    monkeypatch.setenv("LONGEVAL_CACHE", "")
    assert cache.cache_dir() == str(tmp_path / "xdg" / "longeval")
    for ignored in ("relative/folder", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache.cache_dir() == str(tmp_path / "home" / ".cache" / "longeval")


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    cache.write_whole(str(path), b"first")
    cache.write_whole(str(path), b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file"]


def test_a_write_that_fails_half_way_leaves_the_old_file(monkeypatch, tmp_path):
    path = tmp_path / "file"
    cache.write_whole(str(path), b"old")

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        cache.write_whole(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_unwritable_cache_is_one_warning_and_no_failure(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        written = [cache.write_if_possible(str(tmp_path / "file" / name), b"x") for name in "abc"]
    assert written == [False, False, False]
    assert len(caplog.records) == 1
    assert "LONGEVAL_CACHE" in caplog.text
    assert cache.write_if_possible(str(tmp_path / "fine"), b"x")


def test_a_sealed_file_is_read_only_while_it_is_whole_and_under_its_name(tmp_path):
    path = tmp_path / "sealed"
    assert cache.write_sealed(str(path), b"con\ntent")
    assert cache.read_sealed(str(path)) == b"con\ntent"
    assert cache.read_sealed(str(path.rename(tmp_path / "other"))) is None
    assert cache.read_sealed(str(path)) is None
    cache.write_sealed(str(path), b"content")
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.read_sealed(str(path)) is None


@pytest.fixture
def later(own_cache, monkeypatch):
    """Every file is older than the time in which it may still change unseen."""
    monkeypatch.setattr(cache, "_now_ns", lambda: time.time_ns() + 10**10)


def test_a_digest_is_remembered_until_the_file_changes(tmp_path, monkeypatch, later):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = cache.file_digest(str(path))
    assert first == hashlib.sha256(b"one").hexdigest()
    reads = []
    real = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda name: reads.append(name) or real(name))
    for known in (cache._known, {}):  # the second as in another process
        monkeypatch.setattr(cache, "_known", known)
        assert cache.file_digest(str(path)) == first
        assert reads == []
    monkeypatch.setattr(cache, "_remembered", lambda: pytest.fail("the memory is read once"))
    assert cache.file_digest(str(path)) == first
    monkeypatch.setattr(cache, "_remembered", dict)
    before = os.stat(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.file_digest(str(path)) == hashlib.sha256(b"two").hexdigest()
    assert len(reads) == 1


def test_a_file_of_this_moment_is_not_remembered(tmp_path, own_cache):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    cache.file_digest(str(path))
    assert not (own_cache / "digests.json").exists()


def test_a_damaged_memory_is_an_empty_one(tmp_path, own_cache, monkeypatch, later):
    monkeypatch.setattr(cache, "_known", {})
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    own_cache.mkdir()
    stamp = cache.file_stamp(str(path))
    entries = ("x", [], [*stamp, 7], [*stamp, "not a digest"], [*stamp[:-1], 0, "0" * 64])
    for damage in ("{", "[]", "[" * 100_000, *(json.dumps({str(path): entry}) for entry in entries)):
        cache._known.clear()
        (own_cache / "digests.json").write_text(damage)
        assert cache.file_digest(str(path)) == hashlib.sha256(b"one").hexdigest()
