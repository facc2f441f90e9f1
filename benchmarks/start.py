"""Start-up: whole processes, from start to first update, against parts of it alone.

`start.py` runs whole processes on the mini SDXL in turns, and compares medians. Its parts:

update   `mindbooth train` with a full cache (PyNative), until the first line of metrics.jsonl;
         against `import mindspore` alone, against a process that only loads the UNet by mindone's
         own from_pretrained (as it comes, and without model families of no use), and against a
         training that is told what it needs instead of finding out (no digests, no keys, no look
         into the cache).
compile  graph mode with an empty --compile_cache, and once more with what that start left there.
launch   `mindbooth launch` of two workers that only join their group, to its end, against bare
         msrun of the same workers.
"""

import argparse
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MINI = HERE.parent / "examples" / "mini-sdxl"
MOST_OF_UNET = 1.3
MOST_OF_TOLD = 1.15
LEAST_SAVED = 3.0
WORKERS = 2
POLL_SECONDS = 0.002
TRAIN = (sys.executable, "-m", "mindbooth.launch", "train")


class RunError(RuntimeError):
    """A process ended otherwise than it should; the end of what it wrote."""


def main() -> int:
    import figures

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="each process once")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    found = []
    for part in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            found += PARTS[part](Path(folder), 1 if options.quick else options.repeats)
    print(figures.as_text(found), end="")
    figures.write(options.json, found)
    return figures.status(found)


def update(folder: Path, repeats: int) -> list[Any]:
    from figures import of, ratio

    kept = folder / "needed.pickle"
    first_update(folder, me("fill", kept))  # fills the cache, and keeps what the run needs
    taken = in_turns(
        repeats,
        {
            "import": lambda: until_said(folder, "nothing"),
            "unet": lambda: until_said(folder, "unet"),
            "lean": lambda: until_said(folder, "lean"),
            "train": lambda: first_update(folder, TRAIN),
            "told": lambda: first_update(folder, me("told", kept)),
        },
    )
    return [
        of("import mindspore", taken["import"], "s"),
        of("load the UNet alone, by mindone", taken["unet"], "s"),
        of("load the UNet alone, without model families of no use", taken["lean"], "s"),
        of("start to first update, warm cache", taken["train"], "s"),
        ratio(
            "start to first update, against loading the UNet alone",
            taken["train"],
            taken["unet"],
            bar=MOST_OF_UNET,
            better="lower",
        ),
        ratio(
            "start to first update, against loading it without those families",
            taken["train"],
            taken["lean"],
            bar=MOST_OF_UNET,
            better="lower",
        ),
        ratio(
            "start to first update, against one that is told what it needs",
            taken["train"],
            taken["told"],
            bar=MOST_OF_TOLD,
            better="lower",
        ),
    ]


def compile_cache(folder: Path, repeats: int) -> list[Any]:
    from figures import of, ratio

    first_update(folder, TRAIN)  # fills the cache of latents
    first, second = list[float](), list[float]()
    for _ in range(repeats):
        graphs = fresh(folder) / "graphs"
        for taken in (first, second):
            taken.append(first_update(folder, TRAIN, "graph", "--compile_cache", str(graphs)))
    return [
        of("start to first update, graph compiled", first, "s"),
        of("start to first update, graph from the compile cache", second, "s"),
        ratio("start, compiled against cached", first, second, bar=LEAST_SAVED, better="higher"),
    ]


def launcher(folder: Path, repeats: int) -> list[Any]:
    from figures import of, ratio

    words = ("--device_target", "CPU", "--nproc_per_node", WORKERS, "--", "--output_dir")
    taken = in_turns(
        repeats,
        {
            "msrun": lambda: whole(*bare_msrun(fresh(folder))),
            "launch": lambda: whole(me("launch", *words, fresh(folder)), os.environ),
        },
    )
    return [
        of(f"msrun of {WORKERS} workers that only join", taken["msrun"], "s"),
        of("mindbooth launch of the same workers", taken["launch"], "s"),
        ratio("mindbooth launch, against msrun", taken["launch"], taken["msrun"], better="lower"),
    ]


PARTS = {"update": update, "compile": compile_cache, "launch": launcher}


def in_turns(repeats: int, ways: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            taken[name].append(way())
    return taken


def me(child: str, *words: object) -> list[str]:
    """The command that runs one of CHILDREN."""
    return [sys.executable, __file__, child, *map(str, words)]


def fresh(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def first_update(folder: Path, train: Sequence[str], mode: str = "pynative", *more: str) -> float:
    """Seconds until a training has done one update. The cache of latents is `folder`'s."""
    output = fresh(folder)
    command = [
        *train,
        "--pretrained_model_name_or_path", MINI / "model",
        "--instance_data_dir", MINI / "instance", "--instance_prompt", "a photo of sks robot",
        "--resolution", "64", "--random_flip", "--train_batch_size", "1", "--mode", mode,
        "--max_train_steps", "1", "--report_to", "none", "--device_target", "CPU",
        "--latent_cache_dir", folder / "cache", "--output_dir", output, *more,
    ]  # fmt: skip
    return until(list(map(str, command)), output / "metrics.jsonl")


def until_said(folder: Path, child: str) -> float:
    """Seconds until a child that writes into the file it is given has done so."""
    sign = fresh(folder) / "sign"
    return until(me(child, sign), sign)


def until(command: Sequence[str], sign: Path) -> float:
    """Seconds from a process's start until something is in the file `sign`; it then ends."""
    with tempfile.TemporaryFile("w+") as told:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
        while not (sign.exists() and sign.stat().st_size) and process.poll() is None:
            time.sleep(POLL_SECONDS)
        took = time.perf_counter() - began
        if process.wait() or not sign.exists():
            told.seek(0)
            raise RunError(told.read()[-3000:])
    return took


def whole(command: Sequence[str], environ: Mapping[str, str]) -> float:
    """Seconds from a process's start to its end."""
    began = time.perf_counter()
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if ended.returncode:
        raise RunError((ended.stdout + ended.stderr)[-3000:])
    return took


def bare_msrun(logs: Path) -> tuple[list[str], dict[str, str]]:
    """As the launcher calls it, with the same threads for each worker."""
    programs = Path(sys.executable).parent
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    threads = max(1, len(os.sched_getaffinity(0)) // WORKERS)
    environ = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "PATH": f"{programs}:{os.environ.get('PATH', '/usr/bin:/bin')}",
    }
    command = [
        programs / "msrun", f"--worker_num={WORKERS}", f"--local_worker_num={WORKERS}",
        "--master_addr=127.0.0.1", f"--master_port={port}", f"--log_dir={logs}", "--join=True",
        "--cluster_time_out=600", "python", __file__, "join",
    ]  # fmt: skip
    return list(map(str, command)), environ


# What the processes do. Nothing is imported before it is known which.


def nothing(sign: str) -> int:
    import mindspore

    Path(sign).write_text(mindspore.__version__)
    return 0


def lean(sign: str) -> int:
    """As `unet`, but without the model families that mindbooth leaves out."""
    return unet(sign, whole=False)


def unet(sign: str, *, whole: bool = True) -> int:
    """The UNet as mindone loads it, with the operators that a CPU lacks."""
    from mindbooth.trainer import __main__ as trainer

    trainer.hide_chatter()
    trainer.keep_torch_out()
    from mindbooth.trainer import cpu_ops, lazy

    if not whole:
        lazy.install()
    cpu_ops.install()
    from mindone.diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(str(MINI / "model"), subfolder="unet")
    Path(sign).write_text(type(model).__name__)
    return 0


def fill(kept: str, *argv: str) -> int:
    """A run that keeps what it needs."""

    def change(needed: Any, precompute: Any) -> None:
        plan = needed.plan

        def planned(*args: Any, **options: Any) -> Any:
            found = plan(*args, **options)
            Path(kept).write_bytes(pickle.dumps(found))
            return found

        needed.plan = planned

    return _changed(change, argv)


def told(kept: str, *argv: str) -> int:
    """A run that is told what it needs, and that it is there."""

    def change(needed: Any, precompute: Any) -> None:
        needed.plan = lambda *args, **options: pickle.loads(Path(kept).read_bytes())
        precompute.fill = lambda *args, **options: None

    return _changed(change, argv)


def _changed(change: Callable[[Any, Any], None], argv: Sequence[str]) -> int:
    from mindbooth.trainer import __main__ as trainer

    trainer.hide_chatter()  # before MindSpore is imported, as main() does it
    trainer.keep_torch_out()
    from mindbooth.trainer import needed, precompute

    change(needed, precompute)
    return trainer.main(argv)


def join(*_: str) -> int:
    import mindspore
    from mindspore.communication import init

    mindspore.set_device("CPU")
    init()
    return 0


def launch(*argv: str) -> int:
    """The launcher, of workers that are this file."""
    from mindbooth.launch.commands import launch

    return launch(argv, program=(str(HERE / "start.py"), "join"))


CHILDREN: dict[str, Callable[..., int]] = {
    child.__name__: child for child in (nothing, unet, lean, fill, told, join, launch)
}

if __name__ == "__main__":
    begin = CHILDREN.get(sys.argv[1] if len(sys.argv) > 1 else "")
    sys.exit(begin(*sys.argv[2:]) if begin else main())
