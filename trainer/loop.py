"""Training, from a run's inputs to the saved adapter: `train()` is the order of events.

Called by __main__ after the group is joined; every rank runs it. Only rank 0 writes into the
output folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from mindspore import nn

from mindbooth.data.batches import Batch, Source
from mindbooth.data.cache import Store
from mindbooth.data.prefetch import Prefetch
from mindbooth.data.stream import Stream

from . import checkpoint, debug, export, lora, precompute, report, sdxl
from . import run as runs
from .config import TrainConfig
from .device import Comm
from .lora import Adapter
from .optimizer import AdamW
from .rates import schedule
from .report import Metrics, Phases, Progress
from .run import Run
from .sample import Validation
from .step import LIMIT, LossScale, Result, Step
from .stop import STATUS, StopRequest

log = logging.getLogger(__name__)


def train(config: TrainConfig, comm: Comm, stop: StopRequest, environ: Mapping[str, str]) -> int:
    """Trains an adapter; returns the exit status: 0, or 75 if stopped with a checkpoint."""
    store, token = runs.place(config, comm, environ)
    with runs.failures_told(store, token, comm):
        return _train(config, comm, stop, store, token)


def _train(config: TrainConfig, comm: Comm, stop: StopRequest, store: Store, token: str) -> int:
    phases = Phases()
    with phases("look at the input"):
        run = runs.look(config, comm, store, token)
        meeting = run.meeting()
        meeting.at("looked")
    with phases("encode"):
        precompute.fill(run.needed, run.model, store, comm, dtype=run.dtype, run_token=token)
    with phases("load the UNet"):
        unet = sdxl.load_unet(run.model, run.dtype)
        lora.inject(unet, rank=config.optim.rank)
        adapter = Adapter({"unet": unet}, seed=run.seed)
        step = _step(run, unet, adapter)
        first = checkpoint.restore(run.resumed, adapter, step) if run.resumed else 0
        meeting.at("loaded")
        _prove_agreement(comm, adapter)
    run.begin()
    source, rate = _source(run), _rate(run)
    batches_of = _batches(run, source)
    validation = Validation(run, unet, meeting)
    _tell_start(run, adapter, first)
    if config.run.debug:
        debug.watch(unet)
        debug.show_batch(run, source)

    with stop.noted():
        with phases("compile" if step.mode == "graph" else "first forward"):
            step.prepare(batches_of(first)[0])
            meeting.at("compiled")
        done, stopped = first, False
        with (
            Metrics(run, first) as metrics,
            Progress("update", run.updates, unit="update", done=first, show=comm.rank == 0) as bar,
            Prefetch(batches_of, range(first, run.updates)) as feed,
        ):
            for update, batches in enumerate(feed, start=first):
                with phases("updates"):
                    result, figures = _settle(step, update, rate(update), batches, stop)
                stopped = result.stop
                if result.applied:
                    done = update + 1
                    metrics.write(step=done, **figures)
                    bar.advance(loss=f"{result.loss:.4f}", lr=f"{rate(update):.2e}")
                if stopped or done % config.output.checkpointing_steps == 0:
                    with phases("checkpoint"):
                        checkpoint.save(run, done, adapter, step, meeting)
                if stopped:
                    break
                if done < run.updates and validation.due(update, done):
                    with phases("validation pictures"):
                        validation.make(done)
        if done == run.updates:
            _finish(run, adapter, validation, phases, stopped)
        elif comm.rank == 0:
            log.info("Stopped on request after %d updates. To go on, give the same command again "
                     "with --resume_from_checkpoint latest.", done)  # fmt: skip
        meeting.at("end")
    meeting.over()
    if config.run.debug:
        print(phases.table(), flush=True)
    return 0 if done == run.updates else STATUS


def _finish(run: Run, adapter: Adapter, validation: Validation, phases: Phases,
            stopped: bool) -> None:  # fmt: skip
    """The adapter first, so that it is safe; then pictures, unless asked to stop; the card."""
    if run.comm.rank == 0:
        path = export.adapter(run.output, adapter.arrays(), adapter.metadata)
        log.info("The adapter: %s", path)
    with phases("validation pictures"):
        picture = None if stopped else validation.make(run.updates)
    if run.comm.rank == 0:
        export.card(run, picture)


def _settle(step: Step, update: int, rate: float, batches: list[Batch],
            stop: StopRequest) -> tuple[Result, dict[str, float]]:  # fmt: skip
    """One update, repeated at half the loss scale as long as it overflows, and its figures."""
    began = time.perf_counter()
    skipped = 0
    while True:
        result = step(update, rate, batches, stop=stop.asked)
        if result.applied or result.stop:
            return result, {
                "loss": result.loss,
                "lr": rate,
                "grad_norm": result.grad_norm,
                "loss_scale": result.scale,
                "skipped": skipped,
                "collectives": result.collectives,
                "seconds": round(time.perf_counter() - began, 4),
            }
        skipped += 1
        if step.scale.value < 1:
            samples = [k for batch in batches for k in batch.samples]
            raise FloatingPointError(
                f"Update {update} is not finite even with loss scale {result.scale}: this rank's "
                f"samples were {samples}. Look at their pictures; try a lower learning rate, or "
                "--mixed_precision no."
            )


def _step(run: Run, unet: nn.Cell, adapter: Adapter) -> Step:
    optim, options = run.config.optim, run.config.run
    optimizer = AdamW(
        adapter.master,
        betas=(optim.adam_beta1, optim.adam_beta2),
        epsilon=optim.adam_epsilon,
        weight_decay=optim.adam_weight_decay,
        max_grad_norm=optim.max_grad_norm,
        limit=LIMIT[options.allreduce_dtype],
    )
    return Step(
        unet,
        adapter,
        optimizer,
        run.comm,
        accumulation=run.batching.accumulation,
        dtype=run.dtype,
        wire=options.allreduce_dtype,
        mode="pynative" if options.debug else options.mode,
        scale=LossScale(),
    )


def _rate(run: Run) -> Callable[[int], float]:
    optim = run.config.optim
    return schedule(
        optim.lr_scheduler,
        rate=optim.learning_rate,
        warmup=optim.lr_warmup_steps,
        updates=run.updates,
        cycles=optim.lr_num_cycles,
        power=optim.lr_power,
    )


def _source(run: Run) -> Source:
    scale, shift = sdxl.latent_scale(run.model.config("vae"))
    return Source(
        store=run.store,
        stream=Stream(run.seed, len(run.examples)),
        items=run.needed.items,
        objective=run.objective,
        scale=scale,
        shift=shift,
        repair=precompute.repairer(run.needed, run.model, run.store, run.dtype),
    )


def _batches(run: Run, source: Source) -> Callable[[int], list[Batch]]:
    """This rank's micro-batches of an update, as a function of its number."""
    batching, rank = run.batching, run.comm.rank
    return lambda update: [
        source.assemble(batching.samples(update, micro, rank))
        for micro in range(batching.accumulation)
    ]


def _prove_agreement(comm: Comm, adapter: Adapter) -> None:
    """All ranks start from the same adapter. Also builds the group's links, before ranks drift
    apart in compiling."""
    mine = adapter.digest()
    if comm.agree(mine) != mine:
        raise RuntimeError(
            f"Rank {comm.rank} starts from another adapter than rank 0: do all ranks run the same "
            "versions and options?"
        )


def _tell_start(run: Run, adapter: Adapter, first: int) -> None:
    if run.comm.rank:
        return
    batching = run.batching
    log.info("Versions: %s", ", ".join(f"{k} {v}" for k, v in report.versions().items()))
    log.info(
        "An update takes %d samples: %d a device x %d devices x %d accumulated. %d pictures.",
        batching.samples_per_update, batching.batch, batching.world_size, batching.accumulation,
        len({example.image for example in run.examples}),
    )  # fmt: skip
    log.info("Trained: %d numbers in %d tensors, rank %d.", adapter.size, len(adapter.pieces),
             run.config.optim.rank)  # fmt: skip
    log.info("Updates %d to %d; everything goes to %s.", first + 1, run.updates, run.output)
