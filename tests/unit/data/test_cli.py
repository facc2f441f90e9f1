"""`mindbooth cache`: what is told, in which words, and with which status."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cpu_clock import cpu_seconds
from entries import KEY, KEYS, tensors
from holders import holder

from mindbooth.data import cache_options, needs, summary
from mindbooth.data.cache import Store
from mindbooth.data.cli import main
from mindbooth.data.entry import pack

DAY = 86400
NOBODY = 65534
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on the cache; its status and what it said."""

    def run(command: str, *options: str) -> tuple[int, str]:
        status = main([command, "--latent_cache_dir", str(root), *options])
        said = capsys.readouterr()
        return status, said.err + said.out

    return run


def latents(store: Store, key: str, *, vae: str = "vae", days: float = 0) -> None:
    store.publish(key, tensors(), note={"picture": "dog.jpg", "vae": vae})
    then = time.time() - days * DAY
    os.utime(store.path(key), (then, then))


def text(store: Store, key: str) -> None:
    store.publish(key, {"pooled": tensors()["mean"]}, note={"prompt": "a photo of sks dog"})


def rows(said: str) -> dict[str, list[str]]:
    """The table's rows: what stands at the front -> count and bytes."""
    found = re.findall(r"^(\S.*?)  +([\d,]+)  +([\d.,]+ \w+)$", said, re.MULTILINE)
    return {words: [count, size] for words, count, size in found}


def test_stat_counts_entries_by_what_made_them_and_by_age(store: Store, run: Run) -> None:
    for key, days in zip(KEYS[:5], (0, 3, 8, 31, 400), strict=True):
        latents(store, key, vae="sdxl-vae-fp16-fix", days=days)
    latents(store, KEYS[5])
    text(store, KEYS[6])
    store.path(KEYS[6]).write_bytes(b"")
    text(store, KEYS[7])
    status, said = run("stat")
    counts = {words: count for words, (count, _) in rows(said).items()}
    assert status == 0
    assert counts == {
        "latents, sdxl-vae-fp16-fix": "5",
        "latents, vae": "1",
        "text": "1",
        "unreadable (verify tells more)": "1",
        "all": "8",
        "today": "4",
        "within 7 days": "1",
        "within 30 days": "1",
        "within 90 days": "1",
        "longer ago": "1",
    }
    size = sum(path.stat().st_size for path in store.root.glob("*/*"))
    assert rows(said)["all"][1] == summary.in_units(size)


def test_stat_counts_what_else_there_is(root: Path, store: Store, run: Run) -> None:
    (root / "holiday.jpg").write_bytes(b"123")
    (root / "datasets").mkdir()
    (root / "datasets" / "dog.jpg").write_bytes(b"12345")
    folder = store.path(KEY).parent
    folder.mkdir()
    (folder / f"{KEY}.0123abcd.damaged").touch()
    _, said = run("stat")
    assert rows(said) == {
        "all": ["0", "0 B"],
        "set aside as damaged": ["1", "0 B"],
        "pictures of datasets": ["1", "5 B"],
        "not of mindbooth": ["1", "3 B"],
    }
    assert f"  {root / 'holiday.jpg'}\n" in said


def test_stat_tells_who_is_at_work(root: Path, store: Store, run: Run) -> None:
    assert run("stat")[1].endswith("\nnobody is at work now\n")
    with holder(root, store.path(KEY)) as (process, _):
        _, said = run("stat")
        assert re.search(rf"\nat work now\n  \S+, process {process.pid}: needs 1 entry\n$", said)
        assert rows(said)["being encoded"][0] == "1"


def test_stat_as_json_says_the_same(root: Path, store: Store, run: Run) -> None:
    latents(store, KEY)
    (root / "holiday.jpg").write_bytes(b"123")
    size = store.path(KEY).stat().st_size
    with holder(root) as (process, _):
        status, said = run("stat", "--json")
    told = json.loads(said)
    assert status == 0
    assert told["entries"] == {"count": 1, "bytes": size}
    assert told["made_by"] == [{"kind": "latents", "by": "vae", "count": 1, "bytes": size}]
    assert told["last_used"]["today"] == {"count": 1, "bytes": size}
    assert told["besides"] == {"foreign": {"count": 1, "bytes": 3}}
    assert told["foreign"] == [str(root / "holiday.jpg")]
    assert [worker["pid"] for worker in told["at_work"]] == [process.pid]


def test_a_hundred_foreign_files_are_not_all_named_by_stat(root: Path, run: Run) -> None:
    for number in range(100):
        (root / f"{number}.jpg").touch()
    _, said = run("stat")
    assert said.count(".jpg\n") == 3
    assert "and 97 more (verify names them)" in said


def test_stat_of_thousands_of_entries_takes_no_time_to_speak_of(root: Path, run: Run) -> None:
    content = pack(KEY, tensors(), {"picture": "dog.jpg", "vae": "vae"})
    for number in range(256):
        (root / f"{number:02x}").mkdir()
    for number in range(3000):
        folder = f"{number % 256:02x}"
        (root / folder / f"{folder}{number:062x}.safetensors").write_bytes(content)
    status, said = run("stat")
    assert (status, rows(said)["all"][0]) == (0, "3,000")
    assert cpu_seconds(lambda: run("stat")) < 3


def test_verify_of_a_sound_cache(root: Path, store: Store, run: Run) -> None:
    latents(store, KEY)
    assert run("verify") == (0, f"{root}: 1 entry sound, 0 damaged\n")


def test_verify_names_what_it_found(root: Path, store: Store, run: Run) -> None:
    for key in KEYS[:3]:
        latents(store, key)
    os.truncate(store.path(KEY), 0)
    (root / "holiday.jpg").touch()
    half = root / ".weights.json.0123456789abcdef.part"
    half.touch()
    os.utime(half, (0, 0))
    status, said = run("verify")
    assert status == 1
    assert said.splitlines() == [
        f"{root / 'holiday.jpg'}: not of mindbooth, left alone",
        f"{half}: left behind, removed",
        f"{store.path(KEY)}: damaged, it is cut short (0 bytes)",
        f"{root}: 2 entries sound, 1 damaged",
    ]
    assert run("verify")[0] == 0


def test_a_name_that_is_no_text_can_be_told(root: Path) -> None:
    os.mknod(os.fsencode(root) + b"/holiday \xff.jpg")
    for command in ("stat", "verify"):
        called = [sys.executable, "-c", CALLED, command, "--latent_cache_dir", str(root)]
        done = subprocess.run(called, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "holiday \\udcff.jpg" in done.stdout


def test_the_bar_is_for_terminals(root: Path, store: Store) -> None:
    latents(store, KEY)
    command = [sys.executable, "-c", CALLED, "verify", "--latent_cache_dir", str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


CALLED = "import sys; from mindbooth.data.cli import main; sys.exit(main(sys.argv[1:]))"
AS_NOBODY = (
    "import os, sys; from mindbooth.data import cli; "
    f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); sys.exit(cli.main(sys.argv[1:]))"
)


def test_what_the_user_may_not_read_is_told_and_not_called_damaged(
    root: Path, store: Store
) -> None:
    if os.geteuid() != 0:
        pytest.skip("to become another user needs root")
    latents(store, KEY)
    store.path(KEY).chmod(0o600)
    os.chown(store.path(KEY).parent, NOBODY, NOBODY)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, "verify", "--latent_cache_dir", "."],
        cwd=root,
        capture_output=True,
        text=True,
    )
    name = store.path(KEY).relative_to(root)
    assert (done.returncode, done.stdout.splitlines()) == (
        1,
        [
            f"{name}: it cannot be read (Permission denied)",
            ".: 0 entries sound, 0 damaged",
        ],
    ), done.stderr
    assert store.missing([KEY]) == []


def test_prune_tells_how_much_went(root: Path, store: Store, run: Run) -> None:
    for key in KEYS[:5]:
        latents(store, key, days=40)
    latents(store, KEYS[5])
    size = store.path(KEY).stat().st_size
    would = run("prune", "--older_than", "30d", "--dry_run")
    assert store.missing(KEYS[:6]) == []
    did = run("prune", "--older_than", "30d")
    assert store.missing(KEYS[:6]) == KEYS[:5]
    amounts = "5 entries ({}) {} 1 entry ({})".format
    five, one = summary.in_units(5 * size), summary.in_units(size)
    assert would == (0, f"{root}: {amounts(five, 'would go,', one)} would stay\n")
    assert did == (0, f"{root}: {amounts(five, 'went,', one)} stay\n")


def test_prune_keeps_what_runs_below_a_folder_need(
    tmp_path: Path, root: Path, store: Store, run: Run
) -> None:
    for key in KEYS[:5]:
        latents(store, key)
    needs.write(tmp_path / "runs" / "dog" / needs.KEYS, KEYS[:2])
    needs.write(tmp_path / "runs" / "cat" / needs.KEYS, KEYS[1:3])
    status, said = run("prune", "--unneeded_by", str(tmp_path / "runs"))
    assert status == 0
    assert said.startswith(f"{tmp_path / 'runs'}: 2 runs need 3 entries\n{root}: 2 entries (")
    assert store.missing(KEYS[:5]) == KEYS[3:5]


def test_prune_to_a_size_says_when_it_is_not_reached(root: Path, store: Store, run: Run) -> None:
    needed = "a" * 64  # by a holder
    latents(store, needed, days=1)
    latents(store, KEY)
    with holder(root):
        status, said = run("prune", "--max_size", "10B")
    assert status == 0
    assert store.missing([needed, KEY]) == [KEY]
    assert f"{root}: in use now, so they stay anyway: 1 entry" in said
    assert f"{root}: that is more than --max_size 10 B; nothing else may go" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["prune", "--older_than", "30"], "--older_than: '30' is no time such as 30d, 12h or 2w"),
        (["prune", "--max_size", "50 bananas"], "--max_size: '50 bananas' is no size such as"),
        (["prune", "--unneeded_by", "."], ". and the folders below it have no cache_keys.txt"),
        (["prune", "--all"], "unrecognized arguments: --all. mindbooth cache --help"),
        (["stat", "extra"], "unrecognized arguments: extra"),
        (["scrub"], "COMMAND: invalid choice: 'scrub'"),
        ([], "the following arguments are required: COMMAND. mindbooth cache --help tells"),
        (["stat", "--latent_cache_dir", "x"], "there is no cache in x. Name its folder with"),
        (["verify", "--latent_cache_dir", "x"], "there is no cache in x. Name its folder with"),
        (["prune", "--latent_cache_dir", "x"], "there is no cache in x. Name its folder with"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    root: Path,
    argv: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(root)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mindbooth: error: {said}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["stat"], ["verify"], ["prune"]])
def test_help_fits_a_terminal(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert max(map(len, lines)) <= 100


def test_a_folder_without_permissions_is_told(root: Path, store: Store) -> None:
    if os.geteuid() != 0:
        pytest.skip("to become another user needs root")
    latents(store, KEY)
    store.path(KEY).parent.chmod(0o444)
    for command in ("stat", "verify", "prune"):
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, command, "--latent_cache_dir", "."],
            cwd=root, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert f"error: the cache folder ./{KEY[:2]} cannot be read (Perm" in done.stderr


def test_a_home_folder_is_found_behind_an_equals_sign(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    latents(store, KEY)
    monkeypatch.setenv("HOME", str(store.root.parent))
    assert main(["stat", f"--latent_cache_dir=~/{store.root.name}"]) == 0
    assert capsys.readouterr().out.startswith(f"cache {store.root}\n")


def test_the_default_cache_is_that_of_trainings(tmp_path: Path) -> None:
    store = Store(tmp_path / "mindbooth")
    latents(store, KEY)
    command = [sys.executable, "-c", CALLED, "stat"]
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.stdout.startswith(f"cache {store.root}\n")
    assert rows(done.stdout)["all"][0] == "1"


@pytest.mark.parametrize(
    ("written", "seconds"), [("30d", 30 * DAY), ("2w", 14 * DAY), ("1.5h", 5400), ("0s", 0)]
)
def test_a_time_is_read(written: str, seconds: float) -> None:
    assert cache_options.seconds(written) == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("50GB", 50e9),
        ("50 gb", 50e9),
        ("1.5kB", 1500),
        ("2TiB", 2 << 40),
        ("3G", 3e9),
        ("3Gi", 3 << 30),
        ("7", 7),
        ("7B", 7),
    ],
)
def test_a_size_is_read(written: str, size: float) -> None:
    assert cache_options.size(written) == size


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678_901, "12.3 GB"),
        (1_234_567e9, "1,234.6 TB"),
    ],
)
def test_bytes_are_shown_in_units(size: float, words: str) -> None:
    assert summary.in_units(size) == words
