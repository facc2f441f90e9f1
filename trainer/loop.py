"""One worker's run, from options to the saved adapter: `train()` is the order of events.

Called by __main__ after the group is joined; every rank runs it. Only rank 0 writes into the
output folder. u counts updates from 0; G is the number of samples of an update, over all ranks.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mindspore import nn

from mindbooth.data import examples, stream
from mindbooth.data.batches import Batch, Source
from mindbooth.data.cache import Store, default_root
from mindbooth.data.errors import DataError
from mindbooth.data.examples import Listing
from mindbooth.data.meeting import Meeting
from mindbooth.data.prefetch import Prefetch
from mindbooth.data.stream import Stream

from . import checkpoint, debug, export, lora, objective, precompute, report, sdxl
from .checkpoint import State
from .config import ConfigError, TrainConfig
from .device import Comm
from .lora import Adapter
from .optimizer import AdamW, schedule
from .precompute import Needed
from .report import Metrics, Phases, Progress
from .sample import Validation
from .sdxl import Model
from .step import LIMIT, LossScale, Result, Step
from .stop import STATUS, StopRequest

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
        return self.batch * self.accumulation * self.world_size

    def epoch(self, update: int) -> int:
        """The epoch in which an update begins."""
        return stream.epoch(
            update, samples_per_update=self.samples_per_update, examples=self.examples
        )


def train(config: TrainConfig, comm: Comm, stop: StopRequest, environ: Mapping[str, str]) -> int:
    """Trains an adapter; returns the exit status: 0, or 75 if stopped with a checkpoint."""
    phases = Phases()
    output = Path(config.output.output_dir).expanduser()
    with phases("look at the input"):
        model = sdxl.locate(config.model)
        dtype = sdxl.DTYPES[config.optim.mixed_precision]
        listing = _list(config)
        resumed = checkpoint.resumable(config.output.resume_from_checkpoint, output)
        seed = resumed.state.seed if resumed else _seed(config, comm)
        batching = _batching(config, comm, len(listing.examples), resumed)
        _open_output(output, config, seed, comm)
        store = _open_store(config, environ)
        prompts = Validation.prompts(config.output, model)
        needed = precompute.plan(listing.examples, prompts, config.data, model, store, dtype)
    token = _run_token(environ)
    meeting = Meeting(store.root, run_token=token, rank=comm.rank, size=comm.size)
    with phases("encode"):
        made = precompute.fill(needed, model, store, comm, dtype=dtype, run=token)
        _tell_encoded(made, needed, store)
    with phases("load the UNet"):
        unet = sdxl.load_unet(model, dtype)
        lora.inject(unet, rank=config.optim.rank, dropout=config.optim.lora_dropout)
        adapter = Adapter({"unet": unet}, seed=seed)
        step = _build_step(config, unet, adapter, comm, batching)
        first = checkpoint.restore(resumed, adapter, step) if resumed else 0
    updates = config.optim.updates(len(listing.examples), batching.samples_per_update)
    rate = _rate(config, updates)
    source = _source(config, needed, model, store, seed)
    validation = Validation(config, model, unet, needed, store, comm, meeting, output)
    if config.run.debug:
        debug.watch(unet)
        debug.show_batch(output, source, listing.examples, model, range(batching.batch))
    _tell_start(config, comm, listing, adapter, batching, first, updates, output)
    _prove_agreement(comm, adapter)
    batches_of = _batches(source, batching, comm)
    with phases("compile" if step.mode == "graph" else "first forward"):
        step.prepare(batches_of(first)[0])
    meeting.at("compiled")

    stop.updating = True
    status = 0
    with (
        Metrics(output / "metrics.jsonl", first=first, write=comm.rank == 0) as metrics,
        Progress("update", updates, unit="update", done=first, show=comm.rank == 0) as progress,
        Prefetch(batches_of, range(first, updates)) as feed,
    ):
        for update, batches in zip(range(first, updates), feed, strict=True):
            began = time.perf_counter()
            with phases("updates"):
                result, skipped = _settle(step, update, rate(update), batches, stop)
            done = update + (1 if result.applied else 0)
            metrics.write(
                step=done, loss=result.loss, lr=rate(update), grad_norm=result.grad_norm,
                loss_scale=result.scale, skipped=skipped, collectives=result.collectives,
                seconds=round(time.perf_counter() - began, 4),
            )  # fmt: skip
            progress.advance(loss=f"{result.loss:.4f}", lr=f"{rate(update):.2e}")
            if result.stop or (done % config.output.checkpointing_steps == 0 and done < updates):
                with phases("checkpoint"):
                    checkpoint.save(
                        output, _state(done, seed, batching, adapter, step), adapter, step, comm,
                        meeting, keep=config.output.checkpoints_total_limit,
                    )  # fmt: skip
            if result.stop and done < updates:
                status = STATUS
                break
            if validation.due(batching.epoch(update), batching.epoch(done)) and done < updates:
                with phases("validation pictures"):
                    validation.make(done)
    stop.updating = False
    if status == 0:
        with phases("validation pictures"):
            picture = validation.make(updates)
        if comm.rank == 0:
            export.results(
                output, config, adapter, base_model=model.name, seed=seed, updates=updates,
                samples_per_update=batching.samples_per_update, picture=picture,
            )  # fmt: skip
    else:
        log.info("Stopped on request after update %d; go on with --resume_from_checkpoint latest.",
                 done)  # fmt: skip
    if config.run.debug:
        print(phases.table(), flush=True)
    return status


def _settle(step: Step, update: int, rate: float, batches: list[Batch],
            stop: StopRequest) -> tuple[Result, int]:  # fmt: skip
    """One update, repeated at half the loss scale as long as it overflows."""
    skipped = 0
    while True:
        result = step(update, rate, batches, stop=stop.asked)
        if result.applied or result.stop:
            return result, skipped
        skipped += 1
        if step.scale.value < 1:
            samples = [k for batch in batches for k in batch.samples]
            raise FloatingPointError(
                f"Update {update} is not finite even with loss scale {result.scale}: this rank's "
                f"samples were {samples}. Look at their pictures; try a lower learning rate, or "
                "--mixed_precision no."
            )


def _state(done: int, seed: int, batching: Batching, adapter: Adapter, step: Step) -> State:
    return State(
        update=done,
        seed=seed,
        samples_per_update=batching.samples_per_update,
        loss_scale=step.scale.value,
        sound_updates=step.scale.sound,
        adapter=adapter.layout(),
    )


def _list(config: TrainConfig) -> Listing:
    listing = examples.from_folder(
        Path(config.data.instance_data_dir).expanduser(),
        caption=config.data.instance_prompt,
        repeats=config.data.repeats,
    )
    if listing.remark:
        log.warning("%s", listing.remark)
    return listing


def _seed(config: TrainConfig, comm: Comm) -> int:
    if config.optim.seed is not None:
        return config.optim.seed
    return comm.agree(secrets.randbelow(2**24))


def _batching(config: TrainConfig, comm: Comm, count: int,
              resumed: checkpoint.Resumed | None) -> Batching:  # fmt: skip
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


def _open_output(output: Path, config: TrainConfig, seed: int, comm: Comm) -> None:
    """Makes the output folder and writes config.yaml into it, which shows that it can be done."""
    if comm.rank == 0:
        try:
            output.mkdir(parents=True, exist_ok=True)
            export.config_file(output / "config.yaml", config, seed)
        except OSError as err:
            raise ConfigError(
                f"--output_dir {output} can't be written to: {err.strerror}. Give another one, or "
                "change its permissions."
            ) from err


def _open_store(config: TrainConfig, environ: Mapping[str, str]) -> Store:
    given = config.data.latent_cache_dir
    return Store(Path(given).expanduser() if given else default_root(environ))


def _run_token(environ: Mapping[str, str]) -> str:
    """Tells this attempt of this job from others that use the cache; equal on all its ranks."""
    names = ("MINDBOOTH_JOB", "MS_SCHED_HOST", "MS_SCHED_PORT")
    found = [environ[name] for name in names if name in environ]
    return " ".join(found) or f"{os.getpid()} {time.time_ns()}"


def _build_step(config: TrainConfig, unet: nn.Cell, adapter: Adapter, comm: Comm,
                batching: Batching) -> Step:  # fmt: skip
    optim, run = config.optim, config.run
    optimizer = AdamW(
        adapter.master,
        betas=(optim.adam_beta1, optim.adam_beta2),
        epsilon=optim.adam_epsilon,
        weight_decay=optim.adam_weight_decay,
        max_grad_norm=optim.max_grad_norm,
        limit=LIMIT[run.allreduce_dtype],
    )
    return Step(
        unet,
        adapter,
        optimizer,
        comm,
        accumulation=batching.accumulation,
        dtype=sdxl.DTYPES[optim.mixed_precision],
        wire=run.allreduce_dtype,
        mode="pynative" if run.debug else run.mode,
        scale=LossScale(),
    )


def _rate(config: TrainConfig, updates: int) -> Callable[[int], float]:
    optim = config.optim
    return schedule(
        optim.lr_scheduler,
        rate=optim.learning_rate,
        warmup=optim.lr_warmup_steps,
        updates=updates,
        cycles=optim.lr_num_cycles,
        power=optim.lr_power,
    )


def _source(config: TrainConfig, needed: Needed, model: Model, store: Store,
            seed: int) -> Source:  # fmt: skip
    scale, shift = sdxl.latent_scale(model.config("vae"))
    dtype = sdxl.DTYPES[config.optim.mixed_precision]
    return Source(
        store=store,
        stream=Stream(seed, len(needed.items)),
        items=needed.items,
        objective=objective.diffusion(model.config("scheduler")),
        scale=scale,
        shift=shift,
        repair=precompute.repairer(needed, model, store, dtype),
    )


def _batches(source: Source, batching: Batching, comm: Comm) -> Callable[[int], list[Batch]]:
    """This rank's micro-batches of an update, as a function of its number."""

    def of(update: int) -> list[Batch]:
        return [
            source.assemble(
                stream.micro_batch(
                    update,
                    micro,
                    comm.rank,
                    batch=batching.batch,
                    accumulation=batching.accumulation,
                    world_size=comm.size,
                )
            )
            for micro in range(batching.accumulation)
        ]

    return of


def _prove_agreement(comm: Comm, adapter: Adapter) -> None:
    """All ranks start from the same adapter. Also builds the group's links, before ranks drift
    apart in compiling."""
    mine = adapter.digest()
    if comm.agree(mine) != mine:
        raise DataError(
            f"rank {comm.rank} starts from another adapter than rank 0: do all ranks run the same "
            "versions and options?"
        )


def _tell_encoded(made: int, needed: Needed, store: Store) -> None:
    total = len(needed.keys)
    if made:
        log.info("Encoded %d of %d entries; the cache is %s.", made, total, store.root)
    else:
        log.info("Nothing to encode: all %d entries are in the cache %s.", total, store.root)


def _tell_start(config: TrainConfig, comm: Comm, listing: Listing, adapter: Adapter,
                batching: Batching, first: int, updates: int, output: Path) -> None:  # fmt: skip
    if comm.rank:
        return
    log.info("Versions: %s", ", ".join(f"{k} {v}" for k, v in report.versions().items()))
    log.info(
        "An update takes %d samples: %d a device x %d devices x %d accumulated. %d pictures.",
        batching.samples_per_update, batching.batch, comm.size, batching.accumulation,
        len({example.image for example in listing.examples}),
    )  # fmt: skip
    log.info("Trained: %d numbers in %d tensors, rank %d.", adapter.size, len(adapter.pieces),
             config.optim.rank)  # fmt: skip
    log.info("Updates %d to %d; everything goes to %s.", first + 1, updates, output)
