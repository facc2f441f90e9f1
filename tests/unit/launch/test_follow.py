from io import StringIO
from pathlib import Path

import pytest

from mindbooth.launch.follow import (
    HOLD_SECONDS,
    TRACEBACK,
    Follower,
    Lines,
    Screen,
    Terminal,
    input_error,
    read_tail,
    tail,
)

CHATTER = "[WARNING] DISTRIBUTED(58,7f8da39efb80,python):2026-01-01-00:00:00.000.001 [a.cc:1] x] y"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_come_whole_however_the_bytes_are_cut(size: int) -> None:
    data = "one\r\n10%\r20%\rdone\nzwölf\n\nrest".encode()
    lines = Lines()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    whole = [line for piece in pieces for line in lines.feed(piece)]
    assert whole == ["one", "done", "zwölf", ""]
    assert lines.flush() == ["rest"]
    assert lines.flush() == []


def test_bytes_that_are_no_text_do_not_stop_the_following() -> None:
    assert Lines().feed(b"a\xff\n") == ["a\ufffd"]


def test_the_terminal_does_not_get_chatter_or_input_errors() -> None:
    lines = ["INFO step 1", CHATTER, "mindbooth: error: no such folder.", "[ERROR] ME(1:2): bad"]
    assert Screen().show(lines, now=0) == ["INFO step 1", "[ERROR] ME(1:2): bad"]


def test_a_traceback_waits_for_the_end_of_its_worker() -> None:
    screen = Screen()
    assert screen.show(["before", TRACEBACK, "  File x"], now=10) == ["before"]
    assert screen.show(["ValueError"], now=10 + HOLD_SECONDS) == []
    assert screen.release() == [TRACEBACK, "  File x", "ValueError"]
    assert screen.release() == []


def test_a_traceback_of_a_worker_that_lives_on_is_shown_after_all() -> None:
    screen = Screen()
    screen.show([TRACEBACK, "ValueError"], now=10)
    assert screen.show(["step 2"], now=10.1 + HOLD_SECONDS) == [TRACEBACK, "ValueError", "step 2"]
    assert screen.show(["step 3"], now=20) == ["step 3"]


def test_a_log_is_followed_from_before_it_exists_to_its_last_line(tmp_path: Path) -> None:
    log = Follower(tmp_path / "worker_0.log")
    assert log.poll(0) == []
    with log.path.open("w") as file:
        file.write("a\nb")
        file.flush()
        assert log.poll(1) == ["a"]
        file.write("c\nd")
        file.flush()
        assert log.poll(2) == ["bc"]
    assert log.poll(3, last=True) == ["d"]


def test_a_terminal_that_is_gone_is_no_error() -> None:
    class Gone(StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    err = StringIO()
    terminal = Terminal(out=Gone(), err=err)
    terminal.show("line")
    terminal.say("last")
    assert err.getvalue() == "last\n"


def test_the_tail_leaves_chatter_out_unless_there_is_nothing_else() -> None:
    assert tail(f"a\nb\n\nc\n{CHATTER}\n", 2) == ["b", "c"]
    assert tail(f"{CHATTER}\n", 2) == [CHATTER]
    assert tail("", 2) == []


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("mindbooth: error: x\n", "mindbooth: error: x"),
        (f"hello\nmindbooth: error: x\n{CHATTER}\n", "mindbooth: error: x"),
        ("mindbooth: error: x\nTraceback\n", None),
        ("", None),
    ],
)
def test_an_input_error_is_a_logs_last_line(log: str, found: str | None) -> None:
    assert input_error(log) == found


def test_only_the_end_of_a_huge_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("x" * 1_000_000 + "\nlast\n")
    assert read_tail(path).endswith("x\nlast\n")
    assert len(read_tail(path)) < 100_000
    assert read_tail(tmp_path / "none") == ""
