import fcntl
import logging
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import replace
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
from mindbooth.launch.heartbeats import Beat
from mindbooth.trainer.report import Progress

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


def test_the_terminal_does_not_get_the_stacks_that_were_asked_for() -> None:
    sleeper = (
        "import os, signal, threading\n"
        "from mindbooth.trainer.__main__ import show_stacks_when_asked\n"
        "show_stacks_when_asked()\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print('INFO a', flush=True); os.kill(os.getpid(), signal.SIGUSR2); print('INFO b')"
    )
    run = subprocess.run(
        [sys.executable, "-c", sleeper],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    # The main thread's at once, and then both threads'.
    assert run.stdout.count("most recent call first") == 3
    assert Screen().show(run.stdout.splitlines(), now=0) == ["INFO a", "INFO b"]


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


BEAT = Beat(
    phase="updates", phases=5, what="update", unit="update", first=0, done=12, total=300, since=0.0,
    figures={"loss": "0.1234"}, updates=12, began=True, time=6.0,
)  # fmt: skip
ENCODING = replace(
    BEAT, phase="encode", what="encoding", unit="entry", done=18, total=90, figures={}, updates=None
)
NEXT = replace(BEAT, done=13, updates=13, time=6.5)
TOLD = "[0] INFO update 12/300, loss 0.1234, lr 1.00e-04, 2.31 update/s, 02:04 left"


class Pty:
    """A real terminal, and what it shows of what was written to it."""

    def __init__(self, columns: int) -> None:
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.set_blocking(self.master, False)
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        self.written = ""

    def shown(self) -> list[str]:
        """The lines on the screen: a carriage return goes back, and what comes is written over."""
        try:
            while piece := os.read(self.master, 1 << 16):
                self.written += piece.decode()
        except BlockingIOError:
            pass
        lines = []
        for row in self.written.split("\r\n"):
            line = ""
            for part in row.split("\r"):
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return lines


@pytest.fixture(params=[100, 40, 0], ids=lambda columns: f"{columns} columns")
def pty(request: pytest.FixtureRequest) -> Iterator[Pty]:
    pty = Pty(request.param)
    yield pty
    pty.file.close()
    os.close(pty.master)


def test_a_bar_stands_below_the_lines_that_scroll(pty: Pty) -> None:
    terminal = Terminal(out=pty.file, err=pty.file)
    terminal.show("[1] first")
    terminal.progress(BEAT, now=6.0)
    terminal.show("[1] INFO second")
    terminal.say("mindbooth: third")
    terminal.progress(NEXT, now=6.5)
    *lines, bar, rest = [*pty.shown(), ""]
    assert lines == ["[1] first", "[1] INFO second", "mindbooth: third"]
    assert bar.startswith("update:   4%|")
    assert rest == ""


@pytest.mark.parametrize("pty", [100], indirect=True)
@pytest.mark.parametrize(
    ("beat", "end"),
    [
        (BEAT, "| 12/300 [00:07<02:24,  2.00update/s, loss=0.1234]"),
        (ENCODING, "| 18/90 [00:07<00:24,  3.00entry/s]"),
    ],
)
def test_the_bar_tells_rate_time_left_and_figures(pty: Pty, beat: Beat, end: str) -> None:
    Terminal(out=pty.file, err=pty.file).progress(beat, now=7.2)
    (bar,) = pty.shown()
    assert bar.endswith(end)
    assert len(bar) == 99


@pytest.mark.parametrize("pty", [100], indirect=True)
def test_the_rate_of_a_resumed_run_is_that_of_its_own_updates(pty: Pty) -> None:
    Terminal(out=pty.file, err=pty.file).progress(replace(BEAT, first=9), now=6.0)
    assert " 2.00s/update" in pty.shown()[0]


def test_the_last_bar_stays_and_the_report_comes_below_it(pty: Pty) -> None:
    terminal = Terminal(out=pty.file, err=pty.file)
    terminal.progress(BEAT, now=6.0)
    terminal.close()
    terminal.close()
    terminal.say("mindbooth: rank 1 ended")
    bar, report, rest = pty.shown()
    assert bar.startswith("update:   4%|")
    assert (report, rest) == ("mindbooth: rank 1 ended", "")


def test_progress_lines_of_rank_0_give_way_to_the_bar(pty: Pty) -> None:
    terminal = Terminal(out=pty.file, err=pty.file)
    terminal.show(TOLD)
    terminal.progress(BEAT, now=6.0)
    for line in (TOLD, "[1]" + TOLD[3:], "[0] INFO Pictures after update 12: samples/12/3.png"):
        terminal.show(line)
    terminal.close()
    terminal.show(TOLD)
    kept = [line for line in pty.shown() if not line.startswith("update: ")]
    assert kept == [
        TOLD, "[1]" + TOLD[3:], "[0] INFO Pictures after update 12: samples/12/3.png", TOLD, "",
    ]  # fmt: skip


def test_a_progress_line_is_known_as_the_trainer_writes_it(
    pty: Pty, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for what, total, figures in (("update", 1, {"loss": "0.1"}), ("class images", 1, {})):
            with Progress(what, total, unit="picture") as progress:
                progress.advance(**figures)
    terminal = Terminal(out=pty.file, err=pty.file)
    terminal.progress(BEAT, now=6.0)
    for message in caplog.messages:
        terminal.show(f"[0] INFO {message}")
    assert len(caplog.messages) == 2
    assert len(pty.shown()) == 1


def test_on_the_way_to_the_first_update_the_bar_is_the_phase_and_its_time(pty: Pty) -> None:
    terminal = Terminal(out=pty.file, err=pty.file)
    encoded = replace(ENCODING, phase="compile", done=90)
    terminal.progress(encoded, now=6.0)
    terminal.progress(encoded, now=81.0)
    assert pty.shown() == ["compile [01:15]"]


def test_a_shorter_bar_leaves_nothing_of_a_longer_one(pty: Pty) -> None:
    terminal = Terminal(out=pty.file, err=pty.file)
    terminal.progress(BEAT, now=6.0)
    terminal.progress(replace(BEAT, what="", phase="finish"), now=6.0)
    terminal.show("line")
    assert pty.shown() == ["line", "finish [00:00]"]


def test_where_there_is_no_terminal_there_is_no_bar() -> None:
    out = StringIO()
    terminal = Terminal(out=out, err=out)
    terminal.progress(BEAT, now=6.0)
    terminal.show(TOLD)
    terminal.close()
    assert out.getvalue() == TOLD + "\n"


def test_a_terminal_that_goes_away_under_the_bar_is_no_error() -> None:
    pty = Pty(80)
    terminal = Terminal(out=pty.file, err=StringIO())
    terminal.progress(BEAT, now=6.0)
    os.close(pty.master)
    terminal.progress(NEXT, now=6.5)
    terminal.show("line")
    terminal.close()


def test_tqdm_is_not_loaded_where_no_bar_is_shown() -> None:
    program = "import sys, mindbooth.launch.follow; print('tqdm' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout == "False\n"


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
