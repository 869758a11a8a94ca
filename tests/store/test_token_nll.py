"""The file of token NLLs: arrays come back as they were, and a file of anything else is refused."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from test_store import nll

from longeval.store.nll import token_nll_from_bytes


def file_with(name, content):
    """The file of `nll()` in which one array is something else."""
    old, new = zipfile.ZipFile(io.BytesIO(nll().to_bytes())), io.BytesIO()
    with zipfile.ZipFile(new, "w") as file:
        for entry in old.namelist():
            file.writestr(entry, content if entry == f"{name}.npy" else old.read(entry))
    return new.getvalue()


def npy(array, version=(1, 0)):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version)
    return buffer.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_are_read_in_every_version_of_the_format(version):
    values = np.array([0.5, 4.0, 7.25], dtype="<f4")
    np.testing.assert_array_equal(token_nll_from_bytes(file_with("nll", npy(values, version))).nll_S, values)


VALUES = np.array([0.5, 4.0, 7.25], dtype="<f4")
OTHERS = {
    "two dimensions": npy(VALUES.reshape(1, 3)),
    "a single number": npy(VALUES[0]),
    "Fortran's order": npy(np.asfortranarray(np.ones((3, 2), dtype="<f4"))),
    "another dtype": npy(VALUES.astype("<f8")),
    "another byte order": npy(VALUES.astype(">f4")),
    "objects": npy(VALUES.astype(object)),
    "too few values": npy(VALUES)[:-4],
    "too many values": npy(VALUES) + b"\0\0\0\0",
    "half a value too many": npy(VALUES) + b"\0\0",
    "half a header": npy(VALUES)[:40],
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "a negative shape": npy(VALUES).replace(b"(3,), }", b"(-3,),}"),
    "nothing": b"",
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_an_array_of_another_kind_is_refused(content):
    with pytest.raises(ValueError, match="not a token NLL file"):
        token_nll_from_bytes(file_with("nll", content))
