"""Each picture gets its digest and size, whoever looked at it, and is looked at once."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from photographs import save_turned
from PIL import Image

from mindbooth.data import images
from mindbooth.data.digests import image_digest
from mindbooth.data.errors import DataError
from mindbooth.data.pictures import MEMORY_FOLDER, Picture, look_at

LARGE = (2000, 1000)  # 6 MB as a bitmap
Found = dict[str, Picture]


def later() -> int:
    """A time at which every file is old enough to be remembered."""
    return time.time_ns() + 10**11


def picture(path: Path, size: tuple[int, int] = (3, 2), colour: str = "red") -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)


def some(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [picture(folder / f"{n}.bmp", (3 + n, 2)) for n in range(count)]


def truth(files: list[str]) -> Found:
    return {file: Picture(image_digest(Path(file)), images.probe(Path(file))) for file in files}


def bytes_read(act: Callable[[], object]) -> int:
    """How many bytes this process reads from files in the meantime."""

    def now() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = now()
    act()
    return now() - before


def by_ranks(lists: list[list[str]], roots: list[Path]) -> list[Found | DataError]:
    """What each of several ranks finds; they exchange as real ones do."""
    size = len(lists)
    given, barrier = [b""] * size, threading.Barrier(size)
    results: list[Found | DataError] = [{}] * size

    def one(rank: int) -> None:
        def exchange(content: bytes) -> list[bytes]:
            given[rank] = content
            barrier.wait(30)
            return list(given)

        try:
            results[rank] = look_at(
                lists[rank], roots[rank], rank=rank, size=size, writes=rank == 0,
                exchange=exchange, now_ns=later,
            )  # fmt: skip
        except DataError as err:
            results[rank] = err

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def memories(root: Path) -> list[Path]:
    return list((root / MEMORY_FOLDER).glob("*"))


def test_digest_and_upright_size_are_those_of_the_file(photographs: Path, tmp_path: Path) -> None:
    files = sorted(map(str, photographs.iterdir()))
    found = look_at(files, tmp_path / "cache")
    assert found == truth(files)
    assert list(found) == files


def test_a_remembered_picture_is_not_read_again(tmp_path: Path) -> None:
    files = [picture(tmp_path / "a.bmp", LARGE)]
    first = look_at(files, tmp_path / "cache", now_ns=later)
    again: Found = {}
    assert bytes_read(lambda: again.update(look_at(files, tmp_path / "cache"))) < 100_000
    assert again == first == truth(files)


def test_a_young_file_is_not_remembered(tmp_path: Path) -> None:
    look_at(some(tmp_path, 1), tmp_path / "cache")
    assert not memories(tmp_path / "cache")


def rewrite(path: Path) -> None:
    """Other pixels in the same bytes of the disk, with the time set back."""
    about = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    while path.stat().st_ctime_ns == about.st_ctime_ns:  # its clock ticks every few ms
        path.write_bytes(content)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file under that name, as old and as large."""
    about = path.stat()
    other = path.with_name("other")
    Image.new("RGB", (2, 3), "blue").save(other, "BMP")
    os.utime(other, ns=(about.st_atime_ns, about.st_mtime_ns))
    other.replace(path)


def turn(path: Path) -> None:
    with Image.open(path) as opened:
        save_turned(opened.convert("RGB"), path.with_suffix(".jpg"), 6)
    path.with_suffix(".jpg").replace(path)


@pytest.mark.parametrize("change", [rewrite, replace, turn])
def test_a_changed_picture_is_looked_at_again(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    files = some(tmp_path, 2)
    before = look_at(files, tmp_path / "cache", now_ns=later)
    change(Path(files[0]))
    after = look_at(files, tmp_path / "cache")
    assert after[files[0]] != before[files[0]]
    assert after == truth(files)


def flip(memory: Path) -> None:
    """A single bit, in a digest: what is left is a sound memory of another picture."""
    content = bytearray(memory.read_bytes())
    content[content.index(b'": "') + 5] ^= 1
    memory.write_bytes(content)


def cut(memory: Path) -> None:
    memory.write_bytes(memory.read_bytes()[:-9])


def empty(memory: Path) -> None:
    memory.write_bytes(b"")


def foreign(memory: Path) -> None:
    memory.write_text('{"0.bmp": [1, 2]}')


def remove(memory: Path) -> None:
    memory.unlink()


def folder(memory: Path) -> None:
    memory.unlink()
    (memory / "inside").mkdir(parents=True)


@pytest.mark.parametrize("damage", [flip, cut, empty, foreign, remove, folder])
def test_a_memory_that_cannot_be_trusted_only_costs_time(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    files = some(tmp_path, 2)
    look_at(files, tmp_path / "cache", now_ns=later)
    (memory,) = memories(tmp_path / "cache")
    damage(memory)
    assert look_at(files, tmp_path / "cache", now_ns=later) == truth(files)


def test_a_change_during_the_reading_shows(tmp_path: Path) -> None:
    (file,) = files = some(tmp_path, 1)

    def meanwhile() -> int:
        rewrite(Path(file))
        return later()

    look_at(files, tmp_path / "cache", now_ns=meanwhile)
    assert look_at(files, tmp_path / "cache") == truth(files)


def test_a_memory_that_cannot_be_written_only_costs_time(small_disk: Path) -> None:
    files = some(small_disk, 2)
    (small_disk / "fill").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    assert look_at(files, small_disk / "cache", now_ns=later) == truth(files)
    assert not memories(small_disk / "cache")


def test_what_is_remembered_of_other_pictures_of_the_folder_stays(tmp_path: Path) -> None:
    large = picture(tmp_path / "large.bmp", LARGE)
    look_at([large], tmp_path / "cache", now_ns=later)
    look_at(some(tmp_path, 2), tmp_path / "cache", now_ns=later)
    assert bytes_read(lambda: look_at([large], tmp_path / "cache")) < 100_000


def test_what_is_remembered_of_files_that_are_gone_goes(tmp_path: Path) -> None:
    files = some(tmp_path / "dog", 3)
    look_at(files, tmp_path / "cache", now_ns=later)
    (memory,) = memories(tmp_path / "cache")
    os.remove(files[1])
    added = picture(tmp_path / "dog" / "added.bmp")
    look_at([added], tmp_path / "cache", now_ns=later)
    assert set(json.loads(memory.read_bytes().partition(b"\n")[2])) == {
        "0.bmp", "2.bmp", "added.bmp"
    }  # fmt: skip


def test_a_folder_is_known_under_all_its_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    look_at([picture(tmp_path / "real" / "a.bmp", LARGE)], tmp_path / "cache", now_ns=later)
    through = [str(tmp_path / "link" / "a.bmp")]
    assert bytes_read(lambda: look_at(through, tmp_path / "cache")) < 100_000


def test_pictures_of_several_folders_and_any_name_are_remembered(tmp_path: Path) -> None:
    files = some(tmp_path / "one", 2) + some(tmp_path / "two", 1)
    files.append(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n\t.bmp"))
    picture(tmp_path / "large.bmp", LARGE)
    os.replace(tmp_path / "large.bmp", files[-1])
    assert look_at(files, tmp_path / "cache", now_ns=later) == truth(files)
    assert bytes_read(lambda: look_at(files, tmp_path / "cache")) < 100_000
    assert len(memories(tmp_path / "cache")) == 3


@pytest.mark.parametrize("size", [2, 3, 8])
def test_all_ranks_have_all_answers(tmp_path: Path, size: int) -> None:
    files = some(tmp_path, 5)
    results = by_ranks([files] * size, [tmp_path / "cache"] * size)
    assert results == [truth(files)] * size
    assert [list(found) for found in results if isinstance(found, dict)] == [files] * size


def test_a_picture_is_asked_for_by_one_rank_only(tmp_path: Path) -> None:
    """What rank 0 does not have, it takes rank 1's word for."""
    mine, theirs = some(tmp_path / "mine", 4), some(tmp_path / "theirs", 4)
    for path in (mine[1], mine[3], theirs[0], theirs[2]):
        os.remove(path)
    found = by_ranks([mine, theirs], [tmp_path / "cache"] * 2)
    expected = list(truth([mine[0], theirs[1], mine[2], theirs[3]]).values())
    assert [list(one.values()) for one in found if isinstance(one, dict)] == [expected] * 2


def test_ranks_may_remember_different_things(tmp_path: Path) -> None:
    files = some(tmp_path, 4)
    look_at(files[:3], tmp_path / "cache", now_ns=later)
    roots = [tmp_path / "cache", tmp_path / "cache of another host"]
    assert by_ranks([files] * 2, roots) == [truth(files)] * 2


def test_one_rank_remembers_what_all_have_seen(tmp_path: Path) -> None:
    files = some(tmp_path, 2) + [picture(tmp_path / "large.bmp", LARGE)]
    roots = [tmp_path / f"cache {rank}" for rank in range(3)]
    by_ranks([files] * 3, roots)
    assert [len(memories(root)) for root in roots] == [1, 0, 0]
    assert bytes_read(lambda: look_at(files, roots[0])) < 100_000


@pytest.mark.parametrize("count", [2, 3], ids=["another name", "another number"])
def test_ranks_with_other_pictures_are_told_so(tmp_path: Path, count: int) -> None:
    files = some(tmp_path, 2)
    others = [files[0], *(picture(tmp_path / f"x{n}.bmp") for n in range(1, count))]
    for error in by_ranks([files, files, others], [tmp_path / "cache"] * 3):
        assert isinstance(error, DataError)
        assert f"rank 2 lists {count} pictures and rank 0 2" in str(error)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (os.remove, "1.bmp cannot be read: No such file"),
        (lambda file: os.truncate(file, 0), "1.bmp is empty"),
        (lambda file: Path(file).write_text("text"), "1.bmp is not a picture"),
    ],
)
def test_the_first_file_that_is_no_picture_is_named(
    tmp_path: Path, spoil: Callable[[str], object], told: str
) -> None:
    files = some(tmp_path, 100)
    for number in (70, 1, 99):
        spoil(files[number])
    with pytest.raises(DataError, match=told):
        look_at(files, tmp_path / "cache")


def test_progress_counts_the_pictures_of_all_ranks(tmp_path: Path) -> None:
    told: list[int] = []
    files = some(tmp_path, 5)
    look_at(files, tmp_path / "cache", on_progress=told.append, now_ns=later)
    assert told == [1, 2, 3, 4, 5, 5]
    told.clear()
    look_at(files, tmp_path / "cache", on_progress=told.append)
    assert told == [5]


def test_an_interruption_leaves_no_thread(tmp_path: Path) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look_at(some(tmp_path, 400), tmp_path / "cache", on_progress=interrupt)
    assert not [one for one in threading.enumerate() if one.name.startswith("pictures")]
