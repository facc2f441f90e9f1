"""Jobs fill one cache together, and are killed on the way: what is there is right, and all of it.

The processes are real, and so is everything in them but the encoder (workers/filler.py).
"""

import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from holders import until

from mindbooth.data import cli

FILLER = Path(__file__).parent / "workers" / "filler.py"
ENTRIES = 90
# Those that a job needs: the first, and how many. The two jobs have thirty in common.
JOBS = ((0, 60), (30, 60))
ROUNDS = 40
LIMIT_SECONDS = 60
LINE = 65  # bytes of a key in a record


Process = subprocess.Popen[str]


class Ground:
    """A cache and those who fill it."""

    def __init__(self, folder: Path, pictures: Path) -> None:
        self.cache = folder / "cache"
        self._pictures = pictures
        self._records = folder / "records"  # what each process has encoded
        self._records.mkdir()
        self._started: list[Process] = []

    def start(self, share: int, of: int, entries: tuple[int, int]) -> Process:
        """A process that is about to begin, once it is told to."""
        record = self._records / str(len(self._started))
        arguments = (self._pictures, self.cache, share, of, *entries, record)
        process = subprocess.Popen(
            [sys.executable, FILLER, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()

    def count(self) -> int:
        """How many entries have been encoded."""
        return sum(path.stat().st_size for path in self._records.iterdir()) // LINE

    def encoded(self) -> Counter[str]:
        """How often each has been."""
        records = (path.read_text().splitlines() for path in self._records.iterdir())
        return Counter(key for record in records for key in record)

    def entries(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.cache.rglob("*.safetensors")}

    def files(self) -> set[str]:
        return {path.name for path in self.cache.rglob("*") if not path.is_dir()}


@pytest.fixture
def ground(tmp_path: Path, photographs: Path) -> Iterator[Ground]:
    with closing(Ground(tmp_path, photographs)) as ground:
        yield ground


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> dict[str, bytes]:
    """Every entry, as one process makes it that nobody disturbs."""
    with closing(Ground(tmp_path_factory.mktemp("fresh"), photographs)) as alone:
        processes = [alone.start(0, 1, (0, ENTRIES))]
        begin(processes)
        finish(processes)
        return alone.entries()


def begin(processes: Collection[Process]) -> None:
    """Let them begin together."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go")
        process.stdin.flush()


def finish(processes: Collection[Process]) -> None:
    statuses = [process.wait(timeout=LIMIT_SECONDS) for process in processes]
    assert statuses == [0] * len(processes)


@pytest.mark.parametrize(
    ("jobs", "size"),
    [(JOBS[:1], 2), (JOBS[:1], 4), (JOBS, 2)],
    ids=["2 ranks", "4 ranks", "2 jobs of 2 ranks"],
)
def test_each_entry_is_encoded_once(
    ground: Ground, fresh: dict[str, bytes], jobs: Sequence[tuple[int, int]], size: int
) -> None:
    processes = [ground.start(share, size, job) for job in jobs for share in range(size)]
    begin(processes)
    finish(processes)
    needed = max(first + count for first, count in jobs)
    assert len(ground.entries()) == needed
    assert Counter(ground.encoded().values()) == {1: needed}
    assert ground.entries().items() <= fresh.items()


def test_whoever_is_killed_every_entry_is_right_in_the_end(
    ground: Ground, fresh: dict[str, bytes]
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    all_killed = 0
    for number in range(ROUNDS):
        told = f"round {number} of seed {seed}"
        for path in ground.cache.rglob("*.safetensors"):
            path.unlink()  # what the dead left stays
        before = ground.count()
        killed = storm(ground, chance)
        assert ground.entries() == fresh, told
        # Of what it has encoded, one that is killed has published all but one at most.
        assert ENTRIES <= ground.count() - before <= ENTRIES + killed, told
        all_killed += killed
    assert all_killed > ROUNDS // 2, "too few were still at work"
    assert ground.files() > fresh.keys(), "the dead left nothing?"
    assert cli.main(["verify", "--latent_cache_dir", str(ground.cache)]) == 0
    assert ground.files() == fresh.keys()
    assert ground.entries() == fresh


def storm(ground: Ground, chance: random.Random) -> int:
    """Two jobs from the first entry to the last. At a random moment one process, or all of a job,
    are killed, and started again. How many were killed before they had finished."""
    places = [(share, 2, job) for job in JOBS for share in range(2)]
    processes = {place: ground.start(*place) for place in places}
    begin(processes.values())
    moment = ground.count() + chance.randrange(ENTRIES - 10)
    until(lambda: ground.count() >= moment)
    time.sleep(chance.uniform(0, 0.01))  # an entry takes so long
    victims = chance.choice([*([place] for place in places), places[:2], places[2:]])
    for place in victims:
        processes[place].kill()
    killed = sum(processes[place].wait() != 0 for place in victims)
    again = {place: ground.start(*place) for place in victims}
    begin(again.values())
    finish({**processes, **again}.values())
    return killed
