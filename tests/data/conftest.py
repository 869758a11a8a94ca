"""A function that writes files for the readers."""

import pytest

ROW = '{"text": "a document"}\n'


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes files of one content below `tmp_path`, and returns the path of the last one."""

    def write_files(*names, content=ROW):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_files
