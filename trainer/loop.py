"""Training, from a run's inputs to the saved adapter: `train()` is the order of events.

Called by __main__ after the group is joined; every rank runs it. Only rank 0 writes into the
output folder, but for the traces of --profile, and each rank the class images that it makes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np

from mindbooth.data.batches import Batch
from mindbooth.data.errors import RankFailed
from mindbooth.data.prefetch import Prefetch

from . import (
    card,
    checkpoint,
    compile_cache,
    debug,
    export,
    hub,
    lora,
    memory,
    prior,
    report,
    trained,
)
from . import precompute as cache
from . import run as runs
from .config import TrainConfig
from .device import Comm
from .ema import Ema
from .errors import NeverFinite
from .heartbeat import Heart
from .lora import Adapter
from .npu_profile import DeviceProfile, device_profile
from .optimizer import AdamW, Optimizer, Segment
from .phases import Phases
from .place import Place, failures_told, meet
from .prodigy import Prodigy
from .rates import schedule
from .report import Metrics, Progress
from .run import Run
from .step import LIMIT, LossScale, Result, Step
from .stop import STATUS, StopRequest
from .trace import Recording, Trace
from .trackers import Trackers
from .validation import Made, Validation

log = logging.getLogger(__name__)

PROFILE = "profile"  # the folder in the output's, for --profile


def train(config: TrainConfig, comm: Comm, stop: StopRequest, environ: Mapping[str, str]) -> int:
    """Trains an adapter; returns the exit status: 0, 75 if stopped with a checkpoint, or 1 if all
    went well but the upload to the hub."""
    place = meet(config, comm, environ)
    with failures_told(place.meeting), Heart.of(environ, comm.rank) as heart, place.presence:
        phases = _phases(config, comm, heart)
        return _train(_filled(config, place, phases, heart), stop, phases, heart, environ)


def precompute(config: TrainConfig, comm: Comm, environ: Mapping[str, str]) -> int:
    """Fills the cache with what such a training needs; returns the exit status, 0."""
    place = meet(config, comm, environ)
    with failures_told(place.meeting), Heart.of(environ, comm.rank) as heart, place.presence:
        phases = _phases(config, comm, heart)
        _filled(config, place, phases, heart, trains=False)
        _tell_phases(phases, config, None)
    return 0


def _filled(config: TrainConfig, place: Place, phases: Phases, heart: Heart, *,
            trains: bool = True) -> Run:  # fmt: skip
    """The run, once the cache holds all that it needs."""
    with phases("look at the input"):
        run = runs.look(config, place, trains=trains)
        place.meeting.at("looked")
    with phases("class images"):
        prior.fill(config, run.model, place.comm, place.meeting, run.dtype, heart)
        run = runs.with_class_images(run, place)
    with phases("encode"):
        if run.comm.rank == run.group[0]:
            run.presence.use(run.needed.keys)
        cache.fill(run, heart)
    return run


def _train(run: Run, stop: StopRequest, phases: Phases, heart: Heart,
           environ: Mapping[str, str]) -> int:  # fmt: skip
    config, comm, meeting, trace = run.config, run.comm, run.meeting, phases.trace
    with phases("load the models"):
        models = trained.load(run)
        adapter = Adapter(models.models, seed=run.seed)
        step = _step(run, adapter, trace)
        first = checkpoint.restore(run.resumed, adapter, step) if run.resumed else 0
        meeting.at("loaded")
        _prove_agreement(comm, adapter)
    run.begin()
    factor, source = _factor(run), trained.source(run, models)
    batches_of = trained.batches(run, source)
    embed = trained.embedder(run, models)
    validation = Validation(run, models.models["unet"], meeting, embed, heart,
                            has_to_stop=lambda: stop.asked)  # fmt: skip
    _tell_start(run, adapter, first)
    if config.run.debug:
        debug.watch(models.models)
        debug.show_batch(run, source, [some for some in (run.examples, run.class_examples) if some])

    with Trackers(run, first) as trackers:
        lora.seed_dropout(run.seed, first, comm.rank)
        if step.mode == "graph":
            with phases("compile"):
                sizes = [batches_of(update)[0] for update in trained.one_of_each_size(run, first)]
                compile_cache.prepare(run, step, sizes, environ)
                step.prepare_update()
        meeting.at("prepared")
        heart.begin()
        done, stopped, made = first, False, None
        with (
            stop.noted(),
            Metrics(run, first) as metrics,
            Progress(
                "update", run.updates, unit="update", done=first, show=comm.rank == 0, heart=heart
            ) as bar,
            Prefetch(trace.calls("assemble", batches_of), range(first, run.updates)) as feed,
            _device_profile(run) as profile,
        ):
            began, before = time.perf_counter(), comm.collectives
            for update, batches in enumerate(trace.waits(feed, first), start=first):
                with phases("updates"):
                    result, figures = _settle(run, step, update, factor(update), batches, stop)
                figures["collectives"] = comm.collectives - before
                figures["seconds"] = round(time.perf_counter() - began, 4)
                profile.step()
                stopped = result.stop
                if result.applied:
                    done = update + 1
                    metrics.write(step=done, **figures)
                    trackers.figures(done, figures)
                    bar.advance(loss=f"{result.loss:.4f}", lr=f"{figures['lr']:.2e}")
                if stopped or done % config.output.checkpointing_steps == 0:
                    with phases("checkpoint"):
                        checkpoint.save(run, done, adapter, step, meeting)
                if stopped:
                    break
                if done < run.updates and validation.due(update, done):
                    with phases("validation pictures"), _as_used(run, step):
                        trackers.pictures(validation.make(done))
                began, before = time.perf_counter(), comm.collectives
            finished = done == run.updates
            if finished:
                _export(run, adapter, step)
                if validation.prompts and not stopped:
                    with phases("validation pictures"), _as_used(run, step):
                        made = validation.make(done)
                    trackers.pictures(made)
        with phases("finish"):
            uploaded = _finish(run, made) if finished else True
        if not finished and comm.rank == 0:
            log.info("Stopped on request after %d updates. To go on, give the same command again "
                     "with --resume_from_checkpoint latest.", done)  # fmt: skip
        meeting.at("end")
    _tell_phases(phases, config, run.output)
    return STATUS if not finished else int(not uploaded)


def _phases(config: TrainConfig, comm: Comm, heart: Heart) -> Phases:
    if not (config.run.profile or config.run.debug):
        return Phases(heart=heart)
    asynchronous = ms.get_context("device_target") == "Ascend" and not config.run.debug
    return Phases(memory.meters(), heart, Recording(comm.rank, asynchronous=asynchronous))


def _device_profile(run: Run) -> AbstractContextManager[DeviceProfile]:
    target = ms.get_context("device_target") if run.config.run.profile else ""
    return device_profile(target, run.output / PROFILE / "ascend")


def _tell_phases(phases: Phases, config: TrainConfig, output: Path | None) -> None:
    """output: the folder for the trace, where updates were done."""
    if config.run.profile or config.run.debug:
        log.info("Phases:\n%s", phases.table())
        if output:
            phases.trace.write(output / PROFILE)


def _export(run: Run, adapter: Adapter, step: Step) -> None:
    """The adapter comes first of all that ends a run, so that it is safe."""
    if run.comm.rank:
        return
    tensors = step.tensors()
    path = export.adapter(run.output, tensors, adapter.metadata)
    log.info("The adapter: %s", path)
    if run.config.output.output_kohya_format:
        path = export.kohya(run.output, tensors, adapter.metadata, run.config)
        log.info("The same for ComfyUI and A1111: %s", path)


def _finish(run: Run, made: Made | None) -> bool:
    """The card, and the upload if one was asked for; whether all of it went well."""
    if run.comm.rank:
        return True
    samples = card.Samples(pictures=made.files, grid=made.grid) if made else None
    card.write(run, samples, objective=run.objectives.name, repository=run.repository)
    pictures = [made.grid, *(path for _, path in made.files)] if made else []
    return run.repository is None or hub.push(
        run.output, run.repository, run.config.output, pictures
    )


@contextlib.contextmanager
def _as_used(run: Run, step: Step) -> Iterator[None]:
    """Inside, the layers are as those who load the adapter will have them."""
    dropout = run.config.adapter.lora_dropout
    lora.drop(step.adapter.models, on=False)
    try:
        with step.average.shown() if step.average else contextlib.nullcontext():
            yield
        step.adapter.prove()
    finally:
        lora.drop(step.adapter.models, on=dropout > 0)


def _settle(run: Run, step: Step, update: int, factor: float, batches: list[Batch],
            stop: StopRequest) -> tuple[Result, dict[str, float]]:  # fmt: skip
    """One update, repeated at half the loss scale as long as it overflows, and its figures."""
    skipped = 0
    while True:
        result = step(update, factor, batches, stop=stop.asked)
        if result.applied or result.stop:
            return result, {
                "loss": result.loss,
                **_rates(step, factor),
                **({} if result.step_size is None else {"d": result.step_size}),
                "grad_norm": result.grad_norm,
                "loss_scale": result.scale,
                "skipped": skipped,
            }
        skipped += 1
        if step.scale.value < 1:
            raise NeverFinite(_never_finite(run, step, update, result.scale, batches))


def _rates(step: Step, factor: float) -> dict[str, float]:
    """The learning rate of each model: "lr" for the UNet."""
    names = (f"lr_{name}".removesuffix("_unet") for name in step.adapter.stops)
    segments = step.optimizer.segments
    return {name: factor * s.rate for name, s in zip(names, segments, strict=True)}


def _never_finite(run: Run, step: Step, update: int, scale: float, batches: list[Batch]) -> str:
    samples = [k for batch in batches for k in batch.samples]
    bad = step.unsound(batches)
    if run.comm.sum(np.array([len(bad)]))[0] and not bad:
        raise RankFailed("it has samples without finite gradients")
    told = [f"{k} ({', '.join(run.pictures(k))})" for k in bad or samples]
    which = "those without finite gradients" if bad else "all finite by themselves"
    return (
        f"Update {update + 1} is not finite even with loss scale {scale:g}. Of rank "
        f"{run.comm.rank}'s {len(samples)} samples, {which}: {', '.join(told)}. Look at these "
        "pictures; try a lower learning rate, or --mixed_precision no. The last checkpoint is as "
        "it was."
    )


def _step(run: Run, adapter: Adapter, trace: Trace) -> Step:
    options, decay = run.config.run, run.config.adapter.ema_decay
    return Step(
        adapter,
        _optimizer(run, adapter),
        run.comm,
        accumulation=run.batching.accumulation,
        dtype=run.dtype,
        wire=options.allreduce_dtype,
        mode="pynative" if options.debug else options.mode,
        scale=LossScale(),
        average=None if decay is None else Ema(adapter, decay),
        trace=trace,
    )


def _optimizer(run: Run, adapter: Adapter) -> Optimizer:
    optim = run.config.optim
    peak = optim.peak_rate(run.batching.samples_per_update)
    # Prodigy has one rate for all that it trains.
    text_rate = peak if optim.uses_prodigy else optim.text_encoder_lr
    segments = [
        Segment(stop=stop, rate=peak, weight_decay=optim.adam_weight_decay)
        if name == "unet"
        else Segment(stop=stop, rate=text_rate, weight_decay=optim.adam_weight_decay_text_encoder)
        for name, stop in adapter.stops.items()
    ]
    usual: dict[str, Any] = {
        "segments": segments,
        "betas": (optim.adam_beta1, optim.adam_beta2),
        "epsilon": optim.adam_epsilon,
        "max_grad_norm": optim.max_grad_norm,
        "limit": LIMIT[run.config.run.allreduce_dtype],
    }
    if not optim.uses_prodigy:
        return AdamW(adapter.master, **usual)
    return Prodigy(
        adapter.master,
        beta3=optim.prodigy_beta3,
        decouple=optim.prodigy_decouple,
        use_bias_correction=optim.prodigy_use_bias_correction,
        safeguard_warmup=optim.prodigy_safeguard_warmup,
        **usual,
    )


def _factor(run: Run) -> Callable[[int], float]:
    """What the rates of an update are multiplied by."""
    optim = run.config.optim
    return schedule(
        optim.lr_scheduler,
        rate=optim.peak_rate(run.batching.samples_per_update),
        warmup=optim.lr_warmup_steps,
        updates=run.updates,
        cycles=optim.lr_num_cycles,
        power=optim.lr_power,
    )


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
        len({example.file for example in run.examples}),
    )  # fmt: skip
    if run.config.data.buckets:
        sizes = (
            (run.needed.items[some[0]].variants[0].frame.size, len(some))
            for some in run.needed.buckets
        )
        shown = ", ".join(f"{height}x{width} ({count})" for (height, width), count in sizes)
        log.info("Sizes, height first, and how many examples have them: %s.", shown)
    log.info("Trained: %d numbers in %d tensors, rank %d; objective: %s; optimizer: %s.",
             adapter.size, len(adapter.pieces), run.config.adapter.rank, run.objectives.name,
             run.config.optim.optimizer)  # fmt: skip
    for name, model in adapter.models.items():
        held = ", ".join(f"{memory.shown(n)} in {d}" for d, n in memory.weights(model).items())
        log.info("Weights of %s: %s.", name, held)
    if run.resumed:
        log.info("Going on from %s.", run.resumed.path)
    elif run.config.output.resume_from_checkpoint:
        log.info("There is no checkpoint in %s yet: the training begins anew.", run.output)
    if first == run.updates:
        log.warning("Nothing is left to train: all %d updates are done. Raise --max_train_steps to "
                    "go on, or begin anew without --resume_from_checkpoint.", first)  # fmt: skip
    else:
        log.info("Updates %d to %d; everything goes to %s.", first + 1, run.updates, run.output)
