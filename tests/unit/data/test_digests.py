"""Digests follow content; the memory of weight digests never hides a change."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from mindbooth.data.digests import MEMORY_NAME, WeightDigests, image_digest
from mindbooth.data.errors import DataError


def write(path: Path, content: bytes, *, age: float = 3600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


def model(folder: Path) -> Path:
    write(folder / "config.json", b"{}")
    write(folder / "weights.safetensors", b"weights" * 1000)
    write(folder / "inner" / "part.bin", b"part")
    return folder


def an_hour_later(root: Path) -> WeightDigests:
    return WeightDigests(root, now_ns=lambda: time.time_ns() + 3600 * 10**9)


def remembered(memory: Path) -> dict[str, list[int | str]]:
    """What stands behind the seal."""
    return dict(json.loads(memory.read_text().partition("\n")[2]))


def test_an_image_digest_is_of_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", b"some bytes")
    assert image_digest(path) == hashlib.sha256(b"some bytes").hexdigest()
    assert (
        image_digest(path.rename(tmp_path / "b.jpg")) == hashlib.sha256(b"some bytes").hexdigest()
    )


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        image_digest(tmp_path / "gone.png")


def test_a_named_pipe_is_no_picture_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is no file"):
        image_digest(tmp_path / "a.png")


def test_moving_and_renaming_the_folder_keeps_the_digest(tmp_path: Path) -> None:
    digests = WeightDigests(tmp_path / "cache")
    before = digests.digest(model(tmp_path / "vae"))
    moved = (tmp_path / "vae").rename(tmp_path / "other name")
    assert digests.digest(moved) == before
    assert WeightDigests(tmp_path / "another cache").digest(moved) == before


def test_links_count_as_what_they_point_to(tmp_path: Path) -> None:
    """The hub's cache is made of links to files that are named by their digests."""
    digests = WeightDigests(tmp_path / "cache")
    plain = write(tmp_path / "plain" / "weights.safetensors", b"x")
    blob = write(tmp_path / "blobs" / "abc123", b"x")
    link = tmp_path / "snapshot" / "weights.safetensors"
    link.parent.mkdir()
    link.symlink_to(blob)
    assert digests.digest(link.parent) == digests.digest(plain.parent) == digests.digest(link)


@pytest.mark.parametrize(
    ("name", "content"),
    [("weights.safetensors", b"other"), ("inner/part.bin", b"Part"), ("new.bin", b"")],
)
def test_changed_and_added_files_change_the_digest(
    tmp_path: Path, name: str, content: bytes
) -> None:
    digests = WeightDigests(tmp_path / "cache")
    folder = model(tmp_path / "vae")
    before = digests.digest(folder)
    write(folder / name, content)
    assert digests.digest(folder) != before


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    digests = WeightDigests(tmp_path / "cache")
    folder = model(tmp_path / "vae")
    before = digests.digest(folder)
    write(folder / ".cache" / "huggingface" / "download.lock", b"x")
    write(folder / ".gitattributes", b"x")
    assert digests.digest(folder) == before


def test_a_young_file_is_not_remembered(tmp_path: Path) -> None:
    folder = model(tmp_path / "vae")  # its ctime is now, whatever its mtime says
    WeightDigests(tmp_path / "cache").digest(folder)
    assert not (tmp_path / "cache" / MEMORY_NAME).exists()


def test_the_same_file_is_read_once(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", b"first")
    memory = tmp_path / "cache" / MEMORY_NAME
    digest = an_hour_later(memory.parent).digest(file)
    entries = remembered(memory)
    entries[str(file)][-1] = "0" * 64  # if this is believed, the file was not read
    text = json.dumps(entries)
    memory.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    assert an_hour_later(memory.parent).digest(file) != digest


def test_what_cannot_be_remembered_in_the_cache_is_read_once_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.safetensors", b"first")
    digests = an_hour_later(write(tmp_path / "cache", b"a file where the cache should be"))
    before = digests.digest(file)
    monkeypatch.delattr("mindbooth.data.digests._sha256")
    assert digests.digest(file) == before


def test_a_flipped_bit_in_the_memory_is_seen(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", b"first")
    memory = tmp_path / "cache" / MEMORY_NAME
    digest = an_hour_later(memory.parent).digest(file)
    content = hashlib.sha256(b"first").hexdigest()
    other = content[:-1] + ("1" if content[-1] == "0" else "0")
    memory.write_text(memory.read_text().replace(content, other))
    assert an_hour_later(memory.parent).digest(file) == digest


def test_memory_keeps_what_others_remembered(tmp_path: Path) -> None:
    files = [write(tmp_path / name, b"x") for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        an_hour_later(tmp_path / "cache").digest(file)
    entries = remembered(tmp_path / "cache" / MEMORY_NAME)
    assert entries.keys() == set(map(str, files))


def test_a_change_that_keeps_size_and_mtime_is_seen(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", b"first")
    before = an_hour_later(tmp_path / "cache").digest(file)
    stat = file.stat()
    # File systems stamp with the clock of their last tick, a few milliseconds apart.
    while file.stat().st_ctime_ns == stat.st_ctime_ns:
        file.write_bytes(b"FIRST")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    after = an_hour_later(tmp_path / "cache").digest(file)
    assert after == WeightDigests(tmp_path / "fresh").digest(file)
    assert after != before


@pytest.mark.parametrize("content", ["", "[]", "{", '{"/x": 1}', "\x00", '{"/x": [1, 2]}'])
def test_a_damaged_memory_is_no_obstacle(tmp_path: Path, content: str) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    (root / MEMORY_NAME).write_text(content)
    folder = model(tmp_path / "vae")
    assert WeightDigests(root).digest(folder) == WeightDigests(tmp_path / "fresh").digest(folder)


def test_a_memory_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", b"x")
    blocked = write(tmp_path / "cache", b"a file where the cache should be")
    assert an_hour_later(blocked).digest(file) == an_hour_later(tmp_path / "fresh").digest(file)


@pytest.mark.parametrize("make", [Path.mkdir, None], ids=["empty", "absent"])
def test_no_weights_is_an_error_with_the_path(tmp_path: Path, make: object) -> None:
    folder = tmp_path / "vae"
    if make is not None:
        folder.mkdir()
    with pytest.raises(DataError, match="vae"):
        WeightDigests(tmp_path / "cache").digest(folder)
