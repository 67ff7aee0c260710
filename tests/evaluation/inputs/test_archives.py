"""Archives are checked before memory is taken: promised sizes, bombs, objects."""

import io
import zipfile

import numpy as np
import pytest

from dit.errors import UserError
from dit.evaluation.inputs import archives
from dit.evaluation.inputs.archives import open_npz, read_array


def header_of(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    stream = io.BytesIO()
    fields = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


def refused(path) -> str:
    with open_npz(path) as file, pytest.raises(UserError) as error:
        read_array(file, path, "arr_0")
    return str(error.value)


@pytest.mark.parametrize("shape", [(10**12, 64, 64, 3), (2, 2, 2), (3,), (-4,), (2**62, 2**62)])
def test_a_header_that_promises_another_size_is_refused(tmp_path, shape):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", header_of(shape) + bytes(4))
    assert "arr_0 in" in refused(path)
    assert "bytes, the archive has 4" in refused(path)


def test_an_array_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    packed = tmp_path / "packed.npz"
    plain = tmp_path / "plain.npz"
    zeros = np.zeros((100, 1000, 3), np.uint8)
    np.savez_compressed(packed, arr_0=zeros)
    np.savez(plain, arr_0=zeros)
    assert packed.stat().st_size < 2000

    monkeypatch.setattr(archives, "free_main_memory", lambda: 299_999)
    assert "without compression: such arrays stay on the disk" in refused(packed)
    monkeypatch.setattr(archives, "MAPPED_FROM", 1)
    with open_npz(plain) as file:
        assert np.array_equal(read_array(file, plain, "arr_0"), zeros)

    monkeypatch.setattr(archives, "free_main_memory", lambda: 400_000)
    with open_npz(packed) as file:
        assert np.array_equal(read_array(file, packed, "arr_0"), zeros)


@pytest.mark.parametrize("mapped_from", [1, 1 << 28])
def test_objects_are_refused(tmp_path, monkeypatch, mapped_from):
    monkeypatch.setattr(archives, "MAPPED_FROM", mapped_from)
    np.savez(tmp_path / "o.npz", arr_0=np.array([{}, []], dtype=object))
    assert "it holds Python objects" in refused(tmp_path / "o.npz")


@pytest.mark.parametrize(
    "array",
    [np.array("text"), np.array(5), np.zeros(0), np.asfortranarray(np.eye(3)), np.ones(3, "<U4")],
)
def test_plain_arrays_are_read(tmp_path, array):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=array)
    with open_npz(path) as file:
        assert np.array_equal(read_array(file, path, "arr_0"), array)
