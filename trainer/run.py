"""What a run is: found out and checked before anything large is loaded.

All ranks come to the same `Run`, each by itself: they only tell one another who shares the cache,
and what digests and sizes pictures have. Errors here are the user's to put right (ConfigError,
DataError) and leave nothing behind.
u counts updates from 0; G is the number of samples of an update, over all ranks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms

from mindbooth.data import class_images, collector, examples, hub_dataset, needs, pictures, stream
from mindbooth.data.cache import Store
from mindbooth.data.digests import WeightDigests
from mindbooth.data.examples import Example, Listing
from mindbooth.data.meeting import Meeting
from mindbooth.data.pictures import Picture
from mindbooth.data.presence import Presence
from mindbooth.data.stream import Stream

from . import checkpoint, export, hub, needed, objective, sdxl, trackers
from .checkpoint import Resumed
from .config import ConfigError, TrainConfig
from .device import Comm
from .needed import Needed
from .objective import Objectives
from .place import Place
from .report import Progress
from .sdxl import Model

log = logging.getLogger(__name__)

LONG = 500  # pictures, to look at which takes a moment


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How the samples of an update are split: G = batch * accumulation * world size.

    examples: how many make an epoch; with prior preservation, as in the known script, as many as
    there are of the subject or of its class, whichever are more.
    """

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

    group: the ranks that share the cache folder with this one, which is among them. repository: on
    rank 0, where the adapter goes on the hub, if it does.
    """

    config: TrainConfig
    comm: Comm
    meeting: Meeting
    group: tuple[int, ...]
    model: Model
    objectives: Objectives
    examples: tuple[Example, ...]
    class_examples: tuple[Example, ...]
    needed: Needed
    resumed: Resumed | None
    seed: int
    batching: Batching
    output: Path
    store: Store
    presence: Presence
    digests: WeightDigests
    repository: str | None = None

    @property
    def dtype(self) -> ms.Type:
        """What the frozen models compute in."""
        return sdxl.DTYPES[self.config.optim.mixed_precision]

    @property
    def updates(self) -> int:
        """How many updates the run has, from its very beginning."""
        return self.config.optim.updates(self.batching.examples, self.batching.samples_per_update)

    @functools.cached_property
    def streams(self) -> tuple[Stream, ...]:
        """The order of the subject's examples and, with prior preservation, of its class's."""
        subject = Stream(
            seed=self.seed,
            buckets=self.needed.buckets,
            samples_per_update=self.batching.samples_per_update,
        )
        count = len(self.class_examples)
        return (subject, Stream.of(self.seed, count, partners=True)) if count else (subject,)

    def pictures(self, k: int) -> list[str]:
        """The files that sample k is made of: the subject's and, if there is one, the class's."""
        sides = zip(self.streams, (self.examples, self.class_examples), strict=False)
        return [some[stream.example(k)].image.name for stream, some in sides]

    def begin(self) -> None:
        """Rank 0 makes the output folder, and writes config.yaml and what the cache is to keep."""
        if self.comm.rank == 0:
            self.output.mkdir(parents=True, exist_ok=True)
            checkpoint.clean(self.output)
            checkpoint.set_aside(self.output, self.resumed)
            export.config_file(self.output / "config.yaml", self.config, self.seed)
            needs.write(self.output / needs.KEYS, self.needed.keys)


def look(config: TrainConfig, place: Place, *, trains: bool = True) -> Run:
    """Looks at model, pictures, checkpoint and output folder, and leaves no trace of that.

    trains: whether that is more than filling the cache, which asks nothing of the output folder.
    """
    comm, store = place.comm, place.store
    _check_precision(config)
    _check_caches(store.root, config.data.latent_cache_readonly or ())
    model = sdxl.locate(config.model)
    scheduler = model.config("scheduler")
    objectives = objective.choose(scheduler, config.objective)
    listing = _listing(config, place)
    output = Path(config.output.output_dir).expanduser()
    resumed = checkpoint.resumable(config.output.resume_from_checkpoint, output) if trains else None
    tracked = trackers.check(config.output) if trains else ()
    examples_an_epoch = len(listing.examples)
    if config.prior.with_prior_preservation:
        _check_class_folder(config)
        examples_an_epoch = max(examples_an_epoch, config.prior.num_class_images)
    group = place.group(config.data.cache_scope)
    _digest_once(config, model, place, group)
    run = Run(
        config=config,
        comm=comm,
        meeting=place.meeting,
        group=group,
        model=model,
        objectives=objectives,
        examples=listing.examples,
        class_examples=(),
        needed=_needed(config, model, place, group, listing.examples, ()),
        resumed=resumed,
        seed=_seed(config, comm, resumed, place.drawn),
        batching=_batching(config, comm, examples_an_epoch, resumed),
        output=output,
        store=store,
        presence=place.presence,
        digests=place.digests,
    )
    remarks = objective.remarks(scheduler, config.objective, config.model.variant)
    if comm.rank == 0:
        _tell(listing.remark, *run.needed.remarks, *remarks)
    return run if not trains else _checked(run, tracked)


def _checked(run: Run, tracked: Sequence[str]) -> Run:
    """Whether the training can begin and its results be kept."""
    config, resumed = run.config, run.resumed
    if resumed and resumed.state.update > run.updates:
        raise ConfigError(
            f"The checkpoint {resumed.path} is after update {resumed.state.update}, but the run "
            f"has {run.updates}: raise --max_train_steps, or --num_train_epochs."
        )
    if run.comm.rank == 0:
        _try_output(run.output)
        trackers.check_login(tracked)
        if config.output.push_to_hub:
            run = dataclasses.replace(run, repository=hub.check(config))
    return run


def with_class_images(run: Run, place: Place) -> Run:
    """The run with its class pictures, once all of them are there."""
    prior = run.config.prior
    if not prior.with_prior_preservation:
        return run
    listing = class_images.listing(
        prior.folder, prompt=prior.class_prompt or "", count=prior.num_class_images
    )
    found = _needed(
        run.config,
        run.model,
        place,
        run.group,
        run.examples,
        listing.examples,
        "pictures of the class",
    )
    if run.comm.rank == 0:
        _tell(listing.remark, *(told for told in found.remarks if told not in run.needed.remarks))
    return dataclasses.replace(run, class_examples=listing.examples, needed=found)


def _tell(*remarks: str | None) -> None:
    for remark in filter(None, remarks):
        log.warning("%s", remark)


def _check_caches(root: Path, below: Sequence[str]) -> None:
    if os.path.exists(root) and not os.path.isdir(root):
        raise ConfigError(f"--latent_cache_dir {root} is a file: a folder is needed.")
    for folder in below:
        if not os.path.isdir(Path(folder).expanduser()):
            raise ConfigError(f"--latent_cache_readonly {folder}: there is no such folder.")


def _check_precision(config: TrainConfig) -> None:
    asked = {
        "--mixed_precision": config.optim.mixed_precision,
        "--prior_generation_precision": config.prior.prior_generation_precision,
    }
    for flag, precision in asked.items():
        if precision == "bf16" and ms.get_context("device_target") == "CPU":
            raise ConfigError(
                f"{flag} bf16: MindSpore has hardly any bf16 operators on a CPU. Use fp16 or no; "
                "on Ascend, bf16 is there from the 910B on."
            )


@collector.at_rest()
def _listing(config: TrainConfig, place: Place) -> Listing:
    data = config.data
    if data.dataset_name is None:
        return examples.from_folder(
            Path(data.instance_data_dir or "").expanduser(),
            caption=data.instance_prompt,
            repeats=data.repeats,
        )
    if place.comm.rank == 0:
        log.info("Loading the dataset %s.", data.dataset_name)
    cache = config.model.cache_dir
    return hub_dataset.from_dataset(
        data.dataset_name,
        caption=data.instance_prompt,
        keep=place.store.root / "datasets",
        config_name=data.dataset_config_name,
        image_column=data.image_column,
        caption_column=data.caption_column,
        cache_dir=Path(cache).expanduser() if cache else None,
        repeats=data.repeats,
        writer=place.presence.id,
    )


def _check_class_folder(config: TrainConfig) -> None:
    instance = config.data.instance_data_dir
    class_images.check(
        config.prior.folder, instance=Path(instance).expanduser() if instance else None
    )


@collector.at_rest()
def _needed(config: TrainConfig, model: Model, place: Place, group: Sequence[int],
            instance: Sequence[Example], of_class: Sequence[Example],
            what: str = "pictures") -> Needed:  # fmt: skip
    """what: the pictures are called in the ranks' meeting, where each name comes once."""
    comm = place.comm

    def look_at(files: Sequence[str]) -> dict[str, Picture]:
        shown = comm.rank == 0 and len(files) >= LONG
        with Progress("looking at pictures", len(files), unit="picture", show=shown) as bar:
            return pictures.look_at(
                files,
                place.store.root,
                rank=comm.rank,
                size=comm.size,
                writes=comm.rank == group[0],
                writer=place.presence.id,
                exchange=functools.partial(place.meeting.exchange, what),
                on_progress=bar.reach,
            )

    return needed.plan(
        instance,
        of_class,
        _further_prompts(config, model),
        config.data,
        model,
        place.digests,
        sdxl.DTYPES[config.optim.mixed_precision],
        texts=not config.adapter.train_text_encoder,
        look_at=look_at,
    )


def _digest_once(config: TrainConfig, model: Model, place: Place, group: Sequence[int]) -> None:
    """Weights are gigabytes: one rank of a group reads them, and the others find them remembered
    in the cache; where nothing can be, each reads them."""
    if place.comm.rank == group[0]:
        needed.models_of(model, place.digests, texts=not config.adapter.train_text_encoder)
    place.meeting.at("digests")


def _further_prompts(config: TrainConfig, model: Model) -> list[str]:
    """The prompts of the pictures that are to be made, and where it has a use, the empty one."""
    prompts = config.output.validation_prompt or []
    empty = [""] if prompts or config.data.caption_dropout else []
    return [*prompts, *([] if sdxl.zeros_for_empty_prompt(model) else empty)]


def _seed(config: TrainConfig, comm: Comm, resumed: Resumed | None, drawn: int) -> int:
    given = config.optim.seed
    if resumed:
        if comm.rank == 0 and given not in (None, resumed.state.seed):
            log.warning("--seed %d is not used: the checkpoint's is %d.", given, resumed.state.seed)
        return resumed.state.seed
    return drawn if given is None else given


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
