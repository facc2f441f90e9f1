"""Compiled graphs on disk: named by all that determines them, whole or not there, verified."""

import json
import multiprocessing
import os
import resource
import shutil
import time
from pathlib import Path

import pytest

from mindbooth.data.atomic import unfinished_name
from mindbooth.trainer import graph_store
from mindbooth.trainer.graph_store import MANIFEST, GraphStore, key

FACTS = {"inputs": [[[1, 4, 16, 16], "Float32"]], "options": {"rank": 4}}
OTHER = {"inputs": [[[2, 4, 16, 16], "Float32"]], "options": {"rank": 4}}
GRAPH = "graph_cache/compile_cache_0.mindir"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What a compilation leaves."""
    (tmp_path / "made" / GRAPH).parent.mkdir(parents=True)
    (tmp_path / "made" / GRAPH).write_bytes(bytes(range(256)) * 40)
    (tmp_path / "made" / "graph_cache" / "hash").write_text("abc")
    return tmp_path / "made"


@pytest.fixture
def store(tmp_path: Path) -> GraphStore:
    return GraphStore(tmp_path / "far" / "graphs")


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_was_kept_is_taken_by_the_same_facts_only(
    store: GraphStore, made: Path, tmp_path: Path
) -> None:
    assert not store.take(FACTS, tmp_path / "early")
    store.keep(FACTS, made)
    assert not store.take(OTHER, tmp_path / "other")
    assert store.take(json.loads(json.dumps(FACTS)), tmp_path / "taken")
    assert content(tmp_path / "taken") == content(made)
    assert not (tmp_path / "other").exists()


def test_the_manifest_says_what_determined_the_graph(store: GraphStore, made: Path) -> None:
    store.keep(FACTS, made)
    manifest = json.loads((store.root / key(FACTS) / MANIFEST).read_text())
    assert manifest["facts"] == FACTS
    assert set(manifest["files"]) == set(content(made))


def test_the_order_of_facts_does_not_count_and_any_value_does() -> None:
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert key({"a": 1}) != key({"a": 1.0}) != key({"a": True})


def shorten(folder: Path) -> None:
    os.truncate(folder / GRAPH, 100)


def flip(folder: Path) -> None:
    with (folder / GRAPH).open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff")


def lose(folder: Path) -> None:
    (folder / GRAPH).unlink()


def lose_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def shorten_manifest(folder: Path) -> None:
    os.truncate(folder / MANIFEST, 20)


def empty_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"facts": FACTS, "files": {}}))


def other_facts(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"facts": OTHER}))


def lead_elsewhere(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../x"] = manifest["files"].pop(GRAPH)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [shorten, flip, lose, lose_manifest, shorten_manifest, empty_manifest, other_facts,
     lead_elsewhere],
)  # fmt: skip
def test_what_is_damaged_is_told_in_one_line_removed_and_not_used(
    damage, store: GraphStore, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.keep(FACTS, made)
    folder = store.root / key(FACTS)
    damage(folder)
    assert not store.take(FACTS, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    assert [str(folder) in line and "\n" not in line for line in caplog.messages] == [True]
    assert list(store.root.iterdir()) == []
    store.keep(FACTS, made)
    assert store.take(FACTS, tmp_path / "taken")


def test_who_comes_second_leaves_the_first_ones_folder_and_nothing_else(
    store: GraphStore, made: Path
) -> None:
    store.keep(FACTS, made)
    before = (store.root / key(FACTS)).stat().st_ino
    store.keep(FACTS, made)
    assert [path.name for path in store.root.iterdir()] == [key(FACTS)]
    assert (store.root / key(FACTS)).stat().st_ino == before


def test_jobs_that_begin_at_the_same_moment_meet_nothing_half_written(
    store: GraphStore, made: Path, tmp_path: Path
) -> None:
    """Each keeps, takes what is there, and damages or removes it now and then."""
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(target=keep_and_take, args=(store.root, made, tmp_path / f"job-{i}", i))
        for i in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * 4
    assert not [path for path in store.root.iterdir() if path.name.startswith(".")]


def keep_and_take(root: Path, made: Path, folder: Path, number: int) -> None:
    store, whole, hits = GraphStore(root), content(made), 0
    for turn in range(60):
        store.keep(FACTS, made)
        if store.take(FACTS, folder / str(turn)):
            hits += 1
            assert content(folder / str(turn)) == whole
        if turn % 4 == number:
            store.discard(FACTS, "to be rude")
    assert hits > 5


def test_a_half_written_folder_of_the_dead_is_never_met_and_goes_after_an_hour(
    store: GraphStore, made: Path, tmp_path: Path
) -> None:
    store.root.mkdir(parents=True)
    old, new = (store.root / unfinished_name(key(FACTS)) for _ in range(2))
    for folder in (old, new):
        shutil.copytree(made, folder)
    hour_ago = time.time() - graph_store.ABANDONED_SECONDS - 1
    os.utime(old, (hour_ago, hour_ago))
    assert not store.take(FACTS, tmp_path / "taken")
    store.keep(FACTS, made)
    assert sorted(store.root.iterdir()) == sorted([new, store.root / key(FACTS)])


def test_the_most_recently_used_stay(
    store: GraphStore, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_store, "KEPT", 2)
    for number, facts in enumerate([FACTS, OTHER]):
        store.keep(facts, made)
        os.utime(store.root / key(facts), (number, number))
    (store.root / "notes").mkdir()
    assert store.take(FACTS, tmp_path / "taken")
    store.keep({"a": 3}, made)
    left = {key(FACTS), key({"a": 3}), "notes"}
    assert {path.name for path in store.root.iterdir()} == left


def test_a_disk_that_takes_no_more_leaves_nothing(store: GraphStore, made: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            store.keep(FACTS, made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(store.root.iterdir()) == []
