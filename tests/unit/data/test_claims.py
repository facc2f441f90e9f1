"""At most one holds a claim, whoever dies, and nothing that lies in its place stops anyone."""

import hashlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from holders import dead_holder, holder

from mindbooth.data.cache import Store
from mindbooth.data.claims import Claims, is_claim, owner, remove_dead
from mindbooth.data.presence import EXPIRY_SECONDS, FOLDER, Presence

KEYS = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(40)]
KEY = KEYS[0]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def presence(root: Path) -> Iterator[Presence]:
    with Presence(root) as mine:
        yield mine


@pytest.fixture
def claims(presence: Presence) -> Iterator[Claims]:
    with Claims(presence) as mine:
        yield mine


@pytest.fixture
def entry(root: Path) -> Path:
    return Store(root).path(KEY)


def claim_on(entry: Path) -> Path:
    return entry.parent / f".{KEY}.claim"


def test_a_claim_is_a_link_beside_the_entry_that_names_its_owner(
    presence: Presence, claims: Claims, entry: Path
) -> None:
    assert claims.take(entry)
    (claim,) = entry.parent.iterdir()
    assert is_claim(claim.name)
    assert claim.is_symlink()
    assert owner(claim) == presence.id


@pytest.mark.parametrize(
    "name",
    [
        f"{KEY}.safetensors",
        f".{KEY}.safetensors.0123456789abcdef.part",
        f"{KEY}.claim",
        f".{KEY[1:]}.claim",
        f".{KEY}.claim.part",
    ],
)
def test_no_other_name_is_one_of_a_claim(name: str) -> None:
    assert not is_claim(name)


def test_one_holds_it_until_it_is_released(root: Path, claims: Claims, entry: Path) -> None:
    with Presence(root) as another, Claims(another) as others:
        assert claims.take(entry)
        assert not others.take(entry)
        claims.release(entry)
        assert others.take(entry)
        assert not claims.take(entry)


def test_what_is_left_goes_with_the_context(root: Path, presence: Presence, entry: Path) -> None:
    with Presence(root) as another, Claims(another) as others:
        with Claims(presence) as mine:
            mine.take(entry)
            others.take(Store(root).path(KEYS[1]))
        assert others.take(entry)
        assert not mine.take(Store(root).path(KEYS[1]))


def test_what_one_holds_already_is_taken(claims: Claims, entry: Path) -> None:
    # As where a network file system made the link, lost the answer and asked again.
    assert claims.take(entry)
    assert claims.take(entry)


def test_releasing_what_one_does_not_hold_changes_nothing(
    root: Path, claims: Claims, entry: Path
) -> None:
    claims.release(entry)
    with Presence(root) as another, Claims(another) as others:
        others.take(entry)
        claims.release(entry)
        assert owner(claim_on(entry)) == another.id


# The dead


def test_a_claim_of_a_killed_process_is_taken_over(
    root: Path, presence: Presence, claims: Claims, entry: Path
) -> None:
    with dead_holder(root, entry) as dead:
        assert owner(claim_on(entry)) == dead
        assert claims.take(entry)
        assert owner(claim_on(entry)) == presence.id


def test_a_claim_of_a_living_process_stays(root: Path, claims: Claims, entry: Path) -> None:
    with holder(root, entry) as (_, other):
        assert not claims.take(entry)
        assert not remove_dead(claim_on(entry), root)
        assert owner(claim_on(entry)) == other


def test_a_death_is_noticed_after_a_moment_of_trust(
    root: Path, claims: Claims, entry: Path
) -> None:
    with holder(root, entry) as (process, _):
        assert not claims.take(entry)
        process.kill()
        process.wait()
        started = time.monotonic()
        while not claims.take(entry):
            assert time.monotonic() - started < 10
            time.sleep(0.01)


def test_a_claim_without_a_presence_is_a_dead_one(root: Path, claims: Claims, entry: Path) -> None:
    with dead_holder(root, entry) as dead:
        (root / FOLDER / dead).unlink()
        assert claims.take(entry)


def test_one_that_was_taken_for_dead_leaves_the_new_owner_s_claim(
    root: Path, presence: Presence, claims: Claims, entry: Path
) -> None:
    claims.take(entry)
    record = root / FOLDER / presence.id
    record.write_text("of another machine")
    os.utime(record, (1, time.time() - EXPIRY_SECONDS - 1))
    with Presence(root) as another, Claims(another) as others:
        assert others.take(entry)
        claims.release(entry)
        assert owner(claim_on(entry)) == another.id


def test_of_many_that_find_a_dead_claim_one_takes_it_over(root: Path) -> None:
    many, entries = 8, [Store(root).path(key) for key in KEYS]
    takers: list[Path] = []
    together = threading.Barrier(many)

    def take_all(claims: Claims) -> None:
        for entry in entries:
            together.wait(timeout=30)
            if claims.take(entry):
                takers.append(entry)

    with dead_holder(root, *entries), ExitStack() as stack:
        threads = []
        for _ in range(many):
            presence = stack.enter_context(Presence(root))
            claims = stack.enter_context(Claims(presence))
            threads.append(threading.Thread(target=take_all, args=(claims,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert sorted(takers) == sorted(entries)


# What is no claim, and where none can be made


def test_a_foreign_file_in_its_place_is_removed(
    presence: Presence, claims: Claims, entry: Path
) -> None:
    entry.parent.mkdir(parents=True)
    claim_on(entry).write_text("not ours")
    assert claims.take(entry)
    assert owner(claim_on(entry)) == presence.id


def test_a_folder_in_its_place_stops_nobody(
    claims: Claims, entry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    claim_on(entry).mkdir(parents=True)
    (claim_on(entry) / "file").touch()
    assert claims.take(entry)
    assert "no claims can be made" in caplog.text
    claims.release(entry)
    assert claim_on(entry).is_dir()


def test_a_file_in_the_folder_s_place_stops_nobody(claims: Claims, entry: Path) -> None:
    entry.parent.write_text("publishing says what is wrong")
    assert claims.take(entry)


def test_where_links_cannot_be_made_everyone_encodes_and_it_is_told_once(
    root: Path, claims: Claims, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [Store(root).path(key) for key in KEYS[:3]]
    for entry in entries:
        entry.parent.mkdir(parents=True, exist_ok=True)
    folders = [str(entry.parent) for entry in entries]
    # The error is the one of file systems without symbolic links.
    if subprocess.run(["chattr", "+i", *folders], capture_output=True).returncode != 0:
        pytest.skip("making a folder immutable needs root, and a file system that can")
    try:
        with caplog.at_level(logging.INFO), Presence(root) as another, Claims(another) as others:
            assert [claims.take(entry) for entry in entries] == [True] * 3
            assert [others.take(entry) for entry in entries] == [True] * 3
    finally:
        subprocess.run(["chattr", "-i", *folders], check=True)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2, "one of each"
    assert "Operation not permitted" in told[0]
