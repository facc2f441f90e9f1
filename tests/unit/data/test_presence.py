"""Real processes, killed, waiting to be reaped, in other pid namespaces and hidden by /proc."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from holders import dead_holder, holder, until

from mindbooth.data import needs
from mindbooth.data.errors import DataError
from mindbooth.data.presence import (
    EXPIRY_SECONDS,
    FOLDER,
    Presence,
    is_alive,
    keys_in_use,
    living,
)

KEYS = frozenset("bc"[i] * 64 for i in range(2))
NAMESPACE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
NO_PROC = ("unshare", "--pid", "--fork", "--kill-child")


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def touched(root: Path, presence_id: str, *, seconds_ago: float) -> None:
    path = root / FOLDER / presence_id
    when = path.stat().st_mtime - seconds_ago
    os.utime(path, (when, when))


def change(root: Path, presence_id: str, **fields: object) -> None:
    path = root / FOLDER / presence_id
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@contextmanager
def away(root: Path, through: Sequence[str]) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A holder that only root can start so."""
    if os.geteuid() != 0 or subprocess.run([*through, "true"], capture_output=True).returncode:
        pytest.skip(f"{through[0]} needs root")
    with holder(root, through=through) as started:
        yield started


# One's own


def test_is_shown_while_the_context_lasts(tmp_path: Path) -> None:
    with Presence(tmp_path) as mine:
        mine.use(KEYS)
        assert files(tmp_path) == {f"present/{mine.id}", f"present/{mine.id}.keys"}
        assert living(tmp_path) == {mine.id}
    assert files(tmp_path) == set()
    assert not is_alive(tmp_path, mine.id)


def test_says_in_one_line_who_it_is(tmp_path: Path) -> None:
    with Presence(tmp_path) as mine:
        (line,) = (tmp_path / FOLDER / mine.id).read_text().splitlines()
    record = json.loads(line)
    assert record["pid"] == os.getpid()
    assert record["host"] == os.uname().nodename


def test_is_touched_again_and_again(tmp_path: Path) -> None:
    with Presence(tmp_path, beat_seconds=0.01) as mine:
        path = tmp_path / FOLDER / mine.id
        os.utime(path, (1, 1))
        until(lambda: path.stat().st_mtime > 1)


def test_is_shown_again_after_the_cache_was_deleted(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    with Presence(root, beat_seconds=0.01) as mine:
        mine.use(KEYS)
        shutil.rmtree(root, ignore_errors=True)
        until(lambda: root.exists() and keys_in_use(root) == KEYS)
        assert living(root) == {mine.id}


def test_does_nothing_in_a_folder_that_cannot_be_written(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Presence(small_disk, beat_seconds=0.01) as mine:
        mine.use(KEYS)
        assert len(bytes.fromhex(mine.id)) == 8
        assert living(small_disk) == frozenset()


def test_does_nothing_where_the_disk_is_full(small_disk: Path) -> None:
    (small_disk / FOLDER).mkdir()
    with pytest.raises(OSError, match="No space"):
        (small_disk / "big").write_bytes(bytes(2**21))
    with Presence(small_disk) as mine:
        mine.use(KEYS)
    assert files(small_disk) == {"big"}


def test_is_shown_as_soon_as_the_disk_has_room(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "big").write_bytes(bytes(2**21))
    with Presence(small_disk, beat_seconds=0.01) as mine:
        mine.use(KEYS)
        assert keys_in_use(small_disk) == set()
        (small_disk / "big").unlink()
        until(lambda: keys_in_use(small_disk) == KEYS)
        assert living(small_disk) == {mine.id}
    assert files(small_disk) == set()


def test_a_list_that_found_no_room_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, full = needs.write, [True]

    def one_that_fails(*given: Any, **options: Any) -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*given, **options)

    monkeypatch.setattr(needs, "write", one_that_fails)
    with Presence(tmp_path, beat_seconds=0.01) as mine:
        mine.use(KEYS)
        assert living(tmp_path) == {mine.id}
        full.clear()
        until(lambda: keys_in_use(tmp_path) == KEYS)


# Others


def test_a_process_is_alive_until_it_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, other):
        assert is_alive(tmp_path, other)
        process.kill()
        process.wait()
        assert not is_alive(tmp_path, other)
        assert living(tmp_path) == frozenset()


def test_one_that_is_dead_and_not_yet_reaped_is_dead(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, other):
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}").exists()
        assert not is_alive(tmp_path, other)


def test_one_that_is_stopped_is_alive_however_long(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, other):
        process.send_signal(signal.SIGSTOP)
        touched(tmp_path, other, seconds_ago=10 * EXPIRY_SECONDS)
        assert is_alive(tmp_path, other)


def test_another_process_with_the_same_pid_is_not_taken_for_it(tmp_path: Path) -> None:
    with Presence(tmp_path) as mine:
        change(tmp_path, mine.id, began=1)
        assert not is_alive(tmp_path, mine.id)


@pytest.mark.parametrize(
    "fields",
    [{"machine": "another one"}, {"machine": "another one", "pid": 2**22 + 1}, {"pid": None}],
    ids=["another machine", "a pid that is free here", "not a record"],
)
@pytest.mark.parametrize(("seconds_ago", "alive"), [(-5, True), (50, True), (61, False)])
def test_what_cannot_be_seen_is_alive_while_it_is_touched(
    tmp_path: Path, fields: dict[str, object], seconds_ago: float, alive: bool
) -> None:
    with dead_holder(tmp_path) as other:
        change(tmp_path, other, **fields)
        touched(tmp_path, other, seconds_ago=seconds_ago)
        assert is_alive(tmp_path, other) is alive
        assert living(tmp_path) == ({other} if alive else frozenset())
        assert files(tmp_path) == {f"present/{other}", f"present/{other}.keys"}


def test_a_file_that_was_not_written_to_its_end_counts_by_its_time(tmp_path: Path) -> None:
    with Presence(tmp_path) as mine:
        (tmp_path / FOLDER / mine.id).write_bytes(b"")
        assert is_alive(tmp_path, mine.id)
        touched(tmp_path, mine.id, seconds_ago=61)
        assert not is_alive(tmp_path, mine.id)


def test_a_container_on_this_host_is_judged_by_its_touches(tmp_path: Path) -> None:
    with away(tmp_path, NAMESPACE) as (_, other):
        record = json.loads((tmp_path / FOLDER / other).read_text())
        assert record["pid"] == 1, "which is another process here"
        assert is_alive(tmp_path, other)
        touched(tmp_path, other, seconds_ago=61)
        assert not is_alive(tmp_path, other)


def test_a_container_with_a_foreign_proc_is_judged_by_its_touches(tmp_path: Path) -> None:
    with away(tmp_path, NO_PROC) as (_, other):
        assert is_alive(tmp_path, other)
        touched(tmp_path, other, seconds_ago=61)
        assert not is_alive(tmp_path, other)


def test_another_user_s_process_that_proc_hides_is_alive(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("another user is made by root")
    become = "setpriv --reuid 12345 --regid 12345 --clear-groups"
    question = f'mount -t proc -o hidepid=2 proc /proc && exec {become} "$0" -c "$@"'
    script = """
import os, sys
from pathlib import Path
from mindbooth.data.presence import is_alive

root, pid, other = sys.argv[1:]
print(os.path.exists(f"/proc/{pid}"), is_alive(Path(root), other))
"""
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    with holder(tmp_path) as (process, other):
        answers = []
        for _ in range(2):
            asked = subprocess.run(
                ["unshare", "--mount", "sh", "-c", question, sys.executable, script,
                 str(tmp_path), str(process.pid), other],
                capture_output=True, text=True,
            )  # fmt: skip
            answers.append(asked.stdout.split() or asked.stderr)
            process.kill()
            process.wait()
    assert answers == [["False", "True"], ["False", "False"]]


def test_another_user_s_process_that_keeps_its_files_to_itself_is_judged_by_its_touches(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("another user is made by root")
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    script = """
import os, sys
from pathlib import Path
from mindbooth.data.presence import is_alive

os.setuid(12345)
print(is_alive(Path(sys.argv[1]), sys.argv[2]))
"""
    with holder(tmp_path) as (_, other):
        (tmp_path / FOLDER / other).chmod(0o600)
        command = [sys.executable, "-c", script, str(tmp_path), other]
        answers = []
        for _ in range(2):
            answers.append(subprocess.run(command, capture_output=True, text=True).stdout)
            touched(tmp_path, other, seconds_ago=2 * EXPIRY_SECONDS)
    assert answers == ["True\n", "False\n"]


def test_others_are_judged_in_a_folder_that_cannot_be_written(small_disk: Path) -> None:
    with holder(small_disk) as (process, other):
        change(small_disk, other, machine="another one")
        process.kill()
        process.wait()
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        assert is_alive(small_disk, other)


# Lists


def test_nobody_is_there_without_a_folder(tmp_path: Path) -> None:
    assert living(tmp_path / "cache") == frozenset()
    assert keys_in_use(tmp_path / "cache") == set()


def test_files_of_strangers_are_nobody(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for name in ("notes.txt", "0123456789abcdef.keys", ".0123456789abcdef"):
        (tmp_path / FOLDER / name).write_text("")
    assert living(tmp_path) == frozenset()


def test_keys_are_in_use_while_one_that_needs_them_lives(tmp_path: Path) -> None:
    with Presence(tmp_path) as mine, holder(tmp_path) as (process, _):
        mine.use(KEYS)
        assert keys_in_use(tmp_path) == {*KEYS, "a" * 64}
        process.kill()
        process.wait()
        assert keys_in_use(tmp_path) == KEYS


def test_one_that_has_not_said_what_it_needs_needs_nothing(tmp_path: Path) -> None:
    with Presence(tmp_path):
        assert keys_in_use(tmp_path) == set()


def test_a_list_that_is_damaged_is_told(tmp_path: Path) -> None:
    with Presence(tmp_path) as mine:
        mine.use(KEYS)
        path = tmp_path / FOLDER / f"{mine.id}.keys"
        path.write_text(path.read_text()[:-5])
        with pytest.raises(DataError, match=mine.id):
            keys_in_use(tmp_path)
