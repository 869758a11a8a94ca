"""The cache folder: where it is, whole files, and a folder that can't be written."""

import logging
import os

import pytest

from longeval import cache


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
