"""What a run is: found out and checked before anything large is loaded.

All ranks come to the same `Run`, each by itself; only drawn numbers are communicated. Errors here
are the user's to put right (ConfigError, DataError) and leave nothing behind.
u counts updates from 0; G is the number of samples of an update, over all ranks.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms

from mindbooth.data import examples, stream
from mindbooth.data.batches import Objective
from mindbooth.data.cache import Store, default_root
from mindbooth.data.errors import DataError, RankFailed, RankStopped
from mindbooth.data.examples import Example
from mindbooth.data.meeting import Meeting

from . import checkpoint, export, objective, precompute, sdxl
from .checkpoint import Resumed
from .config import ConfigError, TrainConfig
from .device import Comm
from .precompute import Needed
from .sdxl import Model

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How the samples of an update are split: G = batch * accumulation * world size."""

    batch: int
    accumulation: int
    world_size: int
    examples: int

    @property
    def samples_per_update(self) -> int:
        """G."""
        return self.batch * self.accumulation * self.world_size

    def epoch(self, update: int) -> int:
        """The epoch in which an update begins."""
        return stream.epoch(
            update, samples_per_update=self.samples_per_update, examples=self.examples
        )

    def samples(self, update: int, micro: int, rank: int) -> range:
        """The sample numbers of one micro-batch of one rank."""
        return stream.micro_batch(
            update,
            micro,
            rank,
            batch=self.batch,
            accumulation=self.accumulation,
            world_size=self.world_size,
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, as its inputs and options make it.

    token: tells this attempt of this job from others that use the cache; equal on all its ranks.
    """

    config: TrainConfig
    comm: Comm
    model: Model
    objective: Objective
    examples: tuple[Example, ...]
    needed: Needed
    resumed: Resumed | None
    seed: int
    batching: Batching
    output: Path
    store: Store
    token: str

    @property
    def dtype(self) -> ms.Type:
        """What the frozen models compute in."""
        return sdxl.DTYPES[self.config.optim.mixed_precision]

    @property
    def updates(self) -> int:
        """How many updates the run has, from its very beginning."""
        return self.config.optim.updates(len(self.examples), self.batching.samples_per_update)

    def meeting(self) -> Meeting:
        """Where its ranks wait for one another."""
        return Meeting(
            self.store.root,
            run_token=self.token,
            rank=self.comm.rank,
            size=self.comm.size,
            check=lambda: self.store.check(self.token),
        )

    def begin(self) -> None:
        """Rank 0 makes the output folder and writes config.yaml."""
        if self.comm.rank == 0:
            self.output.mkdir(parents=True, exist_ok=True)
            if self.resumed is None:
                checkpoint.set_aside(self.output)
            export.config_file(self.output / "config.yaml", self.config, self.seed)


def place(config: TrainConfig, comm: Comm, environ: Mapping[str, str]) -> tuple[Store, str]:
    """The cache, and the token that tells this attempt from others that use it.

    The launcher's job token is the same for all ranks; the drawn number makes it new under msrun
    alone, too.
    """
    given = config.data.latent_cache_dir
    store = Store(Path(given).expanduser() if given else default_root(environ))
    if store.root.exists() and not store.root.is_dir():
        raise ConfigError(f"--latent_cache_dir {store.root} is a file: a folder is needed.")
    return store, f"{environ.get('MINDBOOTH_JOB', '')} {comm.agree(secrets.randbelow(2**24))}"


@contextlib.contextmanager
def failures_told(store: Store, token: str, comm: Comm) -> Iterator[None]:
    """A rank that gives up inside is noticed by those who wait for it."""
    try:
        yield
    except BaseException as err:
        kind: type[Exception] = RankFailed
        if isinstance(err, (ConfigError, DataError)):
            kind = DataError
        elif isinstance(err, SystemExit):
            kind = RankStopped
        if comm.size > 1:
            store.mark_failed(token, str(err), error=kind)
        raise


def look(config: TrainConfig, comm: Comm, store: Store, token: str) -> Run:
    """Looks at model, pictures, checkpoint and output folder, and leaves no trace of that."""
    model = sdxl.locate(config.model)
    aim = objective.diffusion(model.config("scheduler"))
    listing = examples.from_folder(
        Path(config.data.instance_data_dir).expanduser(),
        caption=config.data.instance_prompt,
        repeats=config.data.repeats,
    )
    output = Path(config.output.output_dir).expanduser()
    resumed = checkpoint.resumable(config.output.resume_from_checkpoint, output)
    batching = _batching(config, comm, len(listing.examples), resumed)
    needed = precompute.plan(
        listing.examples,
        _validation_prompts(config, model),
        config.data,
        model,
        store,
        sdxl.DTYPES[config.optim.mixed_precision],
    )
    if comm.rank == 0:
        _try_output(output)
        for remark in (listing.remark, *needed.remarks):
            if remark:
                log.warning("%s", remark)
    run = Run(
        config=config,
        comm=comm,
        model=model,
        objective=aim,
        examples=listing.examples,
        needed=needed,
        resumed=resumed,
        seed=_seed(config, comm, resumed),
        batching=batching,
        output=output,
        store=store,
        token=token,
    )
    if resumed and resumed.state.update > run.updates:
        raise ConfigError(
            f"The checkpoint {resumed.path} is after update {resumed.state.update}, but the run "
            f"has {run.updates}: raise --max_train_steps, or --num_train_epochs."
        )
    return run


def _validation_prompts(config: TrainConfig, model: Model) -> list[str]:
    """The prompt of the validation pictures and, where it is not just zeros, the empty one."""
    if config.output.validation_prompt is None:
        return []
    empty = [] if sdxl.zeros_for_empty_prompt(model) else [""]
    return [config.output.validation_prompt, *empty]


def _seed(config: TrainConfig, comm: Comm, resumed: Resumed | None) -> int:
    given = config.optim.seed
    if resumed:
        if comm.rank == 0 and given not in (None, resumed.state.seed):
            log.warning("--seed %d is not used: the checkpoint's is %d.", given, resumed.state.seed)
        return resumed.state.seed
    return comm.agree(secrets.randbelow(2**24)) if given is None else given


def _batching(config: TrainConfig, comm: Comm, count: int,
              resumed: Resumed | None) -> Batching:  # fmt: skip
    """Of a resumed run, G is kept: accumulation makes up for another number of devices."""
    optim = config.optim
    batch, accumulation = optim.train_batch_size, optim.gradient_accumulation_steps
    if resumed and resumed.state.samples_per_update != batch * accumulation * comm.size:
        wanted = resumed.state.samples_per_update
        accumulation, left = divmod(wanted, batch * comm.size)
        if left:
            raise ConfigError(
                f"The checkpoint {resumed.path} was made with {wanted} samples an update: that is "
                f"no multiple of --train_batch_size {batch} x {comm.size} devices. Change one of "
                "them so that it is."
            )
        log.info("--gradient_accumulation_steps is %d now, for %d samples an update as before.",
                 accumulation, wanted)  # fmt: skip
    return Batching(batch=batch, accumulation=accumulation, world_size=comm.size, examples=count)


def _try_output(output: Path) -> None:
    """Shows that the output folder can be written to, and leaves it as it was."""
    absent = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as err:
        raise ConfigError(
            f"--output_dir {output} can't be written to: {err.strerror}. Give another one, or "
            "change its permissions."
        ) from err
    finally:
        for folder in absent:
            with contextlib.suppress(OSError):  # not made, or somebody uses it by now
                folder.rmdir()
