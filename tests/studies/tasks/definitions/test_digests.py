"""What a task's digest covers beside its configuration."""

from __future__ import annotations

import importlib.util

from longeval.studies.tasks.definitions.metadata import _code, _content


def test_files_of_ones_own_that_a_scoring_rule_imports_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_rule.py").write_text(
        "import json\n\ndef rule(x):\n    from own_helper import half\n    return half(x)\n"
    )
    (tmp_path / "own_helper.py").write_text(
        "from own_package.deep import SHARE\n\ndef half(x):\n    return x * SHARE\n"
    )
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").touch()
    (tmp_path / "own_package" / "deep.py").write_text("SHARE = 0.5\n")
    (tmp_path / "unrelated.py").write_text("1\n")
    spec = importlib.util.spec_from_file_location("own_rule", tmp_path / "own_rule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seen = [_code(module.rule)]
    for name, content in (
        ("unrelated.py", "2\n"),
        ("own_helper.py", "from own_package.deep import SHARE\n\ndef half(x):\n    return x / SHARE\n"),
        ("own_package/deep.py", "SHARE = 0.25\n"),
    ):
        (tmp_path / name).write_text(content)
        seen.append(_code(module.rule))
    assert seen[0] == seen[1] and len(set(seen)) == 3
    (tmp_path / "own_package" / "deep.py").write_text("print 'not for this Python'\n")
    assert _code(module.rule) not in seen


def test_where_a_module_of_ours_lies_changes_no_digest(tmp_path):
    first, now = tmp_path / "first.py", tmp_path / "now.py"
    first.write_text("from longeval.records import canonical_json\nfrom longeval.tasks.setting import Setting\n")
    now.write_text("from longeval.plain import canonical_json\nfrom longeval.studies.tasks.setting import Setting\n")
    assert _content(str(now)) == _content(str(first)) == first.read_bytes()
    now.write_text("from longeval.files import canonical_json\nfrom longeval.studies.tasks.setting import Setting\n")
    assert _content(str(now)) != _content(str(first))
