"""The folder of snapshots without servers: what is complete, what is used, what is deleted."""

import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tfps import errors
from tfps.store.snapshot_calls import reader_of, save
from tfps.store.snapshot_folder import Folder, Id

PARTS = "ps-0", "chief"


def write(folder, id, value=1.0, parts=PARTS):
    for part in parts:
        save(folder.prefix(id, part), ["x"], [np.full([100], value, np.float32)])


def committed(folder, id, content=None):
    write(folder, id)
    return folder.commit(id, PARTS, 1.5, content or {})


def test_a_manifest_is_read_back(tmp_path):
    folder = Folder(tmp_path / "new" / "one")
    assert folder.complete() == [] and folder.newest_incarnation() == 0
    assert folder.claim() == 1
    written = committed(folder, Id(1, 1), {"a": [1, None, "b"]})
    assert folder.complete() == [Id(1, 1)]
    assert folder.read(Id(1, 1)) == written
    assert sorted(written.files) == sorted(
        f"snapshot-000001-000001.{part}.{kind}"
        for part in PARTS
        for kind in ("index", "data-00000-of-00001")
    )


def test_every_byte_that_is_altered_or_missing_is_noticed(tmp_path):
    """Of a part's data, TensorFlow notices it, when the tensor is read."""
    folder, id = Folder(tmp_path), Id(1, 1)
    committed(folder, id)

    def is_read():
        try:
            folder.read(id)
            return all((reader_of(folder.prefix(id, p)).get_tensor("x") == 1).all() for p in PARTS)
        except (errors.SnapshotDamaged, tf.errors.OpError, RuntimeError):
            return False

    assert is_read()
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        for at in sorted({0, len(whole) // 3, len(whole) // 2, len(whole) - 2}):
            for damaged in (
                whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
                whole[:at],
            ):
                path.write_bytes(damaged)
                assert not is_read(), (path.name, at)
        path.write_bytes(whole)
    assert is_read()


def test_incarnations_are_claimed_once(tmp_path):
    """A part alone tells of a chief, too: of one whose claim was deleted."""
    assert [Folder(tmp_path).claim() for _ in range(3)] == [1, 2, 3]
    write(Folder(tmp_path), Id(7, 1), parts=["ps-0"])
    folder = Folder(tmp_path)
    assert folder.newest_incarnation() == 7
    assert folder.claim() == 8
    assert not folder.has_ended(8)
    folder.end(8)
    assert folder.has_ended(8)


def test_what_is_deleted(tmp_path):
    folder = Folder(tmp_path)
    for id in (Id(1, 1), Id(1, 2), Id(2, 1), Id(2, 3)):
        committed(folder, id)
    write(folder, Id(2, 2))  # Cut short.
    write(folder, Id(1, 3), parts=["ps-0"])
    write(folder, Id(2, 4), parts=["ps-0"])  # Under way.
    write(folder, Id(3, 1), parts=["ps-0"])  # Of a later chief.
    (tmp_path / "mine.txt").write_text("stays")
    folder.keep_newest(2, incarnation=2)
    assert folder.complete() == [Id(2, 3), Id(2, 1)]
    left = {name.split(".")[0] for name in os.listdir(tmp_path)}
    expected = {str(id) for id in (Id(2, 1), Id(2, 3), Id(2, 4), Id(3, 1))} | {"mine"}
    assert left == expected
    folder.keep_newest(1, incarnation=1)  # An older chief.
    assert folder.complete() == [Id(2, 3), Id(2, 1)]
    folder.discard(Id(2, 4))
    assert not list(tmp_path.glob("snapshot-000002-000004*"))


def test_nothing_is_deleted_while_a_manifest_cannot_be_read(tmp_path):
    """Its files may have been written by earlier snapshots, and it may be readable again."""
    folder = Folder(tmp_path)
    for number in (1, 2, 3):
        write(folder, Id(1, number))
        write(folder, Id(1, number), parts=[f"rows-{number}"])
    earlier = committed(folder, Id(1, 1)).files
    folder.commit(Id(1, 3), PARTS, 1.5, {}, dict(earlier))
    manifest = tmp_path / f"{Id(1, 3)}.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(b"")
    before = sorted(os.listdir(tmp_path))
    folder.keep_newest(1, incarnation=1)
    assert sorted(os.listdir(tmp_path)) == before
    manifest.write_bytes(whole)
    folder.keep_newest(1, incarnation=1)
    assert folder.complete() == [Id(1, 3)] and folder.read(Id(1, 3))
    assert len(os.listdir(tmp_path)) < len(before)


def test_a_part_that_is_nowhere(tmp_path):
    folder = Folder(tmp_path)
    write(folder, Id(1, 1), parts=["chief"])
    with pytest.raises(errors.SnapshotFailed, match=r"ps-0 is not in .*that the chief and all ps"):
        folder.commit(Id(1, 1), PARTS, 0.0, {})
    assert folder.complete() == []


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.ConfigError, match=r"snapshots cannot be written to .*give a folder"):
        Folder(tmp_path / "file" / "below").claim()


def test_another_scheme_than_paths(tmp_path):
    """`ram://` stands for any file system of TensorFlow."""
    folder = Folder("ram://snapshots")
    assert folder.claim() == 1 and folder.claim() == 2
    for number in (1, 2, 3):
        committed(folder, Id(2, number), {"number": number})
    folder.keep_newest(2, 2)
    assert folder.complete() == [Id(2, 3), Id(2, 2)]
    assert folder.read(Id(2, 3)).content == {"number": 3}
    assert pathlib.Path("ram:").exists() is False
