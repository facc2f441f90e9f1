"""The pictures of --validation_prompt, while training and at the end: when, and making them.

The pictures of one occasion are shared out over the ranks and summed together, so that every rank
ends with all of them and none is made twice. Seeds and start noise are the same each time: what
changes from one occasion to the next is the adapter alone.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from mindspore import nn
from PIL import Image

from mindbooth.data.atomic import replace_file
from mindbooth.data.meeting import Meeting

from . import report
from .heartbeat import Heart
from .run import Run
from .sample import Embeddings, Sampler, Shot

log = logging.getLogger(__name__)

NAME_LETTERS = 40


@dataclass(frozen=True, kw_only=True)
class Made:
    """The pictures of one occasion.

    pictures: a row a prompt, a column a seed. grid: the sheet of all of them, as a path within the
    output folder. files: after the last update, each picture's prompt and its path there.
    """

    update: int
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    pictures: tuple[tuple[Image.Image, ...], ...]
    grid: str
    files: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """For each prompt a name that suits files and tags, and tells it from the others."""
        return tuple(_name(i, prompt) for i, prompt in enumerate(self.prompts, start=1))


class Validation:
    """When pictures are due, and making them. Nothing is loaded before the first time.

    prompts: those of --validation_prompt. embed: the embeddings of a prompt as the adapter is now;
    it is asked each time, because text encoders may be in training. has_to_stop: whether this rank
    was asked to; pictures take longer than such a request may wait.
    """

    def __init__(self, run: Run, unet: nn.Cell, meeting: Meeting,
                 embed: Callable[[str], Embeddings], heart: Heart | None = None, *,
                 has_to_stop: Callable[[], bool] = lambda: False) -> None:  # fmt: skip
        self._run, self._unet, self._meeting, self._embed = run, unet, meeting, embed
        self._heart = heart
        self._has_to_stop = has_to_stop
        self.prompts = tuple(run.config.output.validation_prompt or ())
        self._sampler: Sampler | None = None

    def due(self, update: int, done: int) -> bool:
        """Whether going from `update` to `done` updates completes --validation_steps of them or,
        where these are not given, --validation_epochs epochs."""
        output, epoch = self._run.config.output, self._run.batching.epoch
        if not self.prompts:
            return False
        if output.validation_steps is not None:
            return update // output.validation_steps < done // output.validation_steps
        return epoch(update) // output.validation_epochs < epoch(done) // output.validation_epochs

    def make(self, update: int) -> Made | None:
        """Makes the pictures; rank 0 writes their sheet and, after the last update, each of them.

        Every rank must call it, and gets them. None without --validation_prompt, and when a rank
        has to stop.
        """
        if not self.prompts:
            return None
        run = self._run
        if self._sampler is None:
            self._sampler = Sampler(
                run.model, self._unet, run.dtype, self._heart, has_to_stop=self._has_to_stop
            )
        count = run.config.output.num_validation_images
        seeds = tuple(run.seed + i for i in range(count))
        embeddings = [self._embed(prompt) for prompt in self.prompts]
        flat = self._sampler.shared(
            [Shot(prompt, seed) for prompt in embeddings for seed in seeds],
            self._embed(""),
            run.comm,
            ready=functools.partial(self._meeting.at, f"pictures {update}"),
            size=(run.config.data.resolution, run.config.data.resolution),
        )
        if flat is None:
            log.warning("Asked to stop: the pictures after update %d are left out.", update)
            return None
        made = Made(
            update=update,
            prompts=self.prompts,
            seeds=seeds,
            pictures=tuple(tuple(flat[i : i + count]) for i in range(0, len(flat), count)),
            grid=f"samples/update-{update:06d}.png",
        )
        return self._written(made)

    def _written(self, made: Made) -> Made:
        """Rank 0 writes the files; all ranks know their names."""
        run = self._run
        singles = {
            f"samples/final/{name}-seed{seed}.png": (prompt, picture)
            for name, prompt, row in zip(made.names, made.prompts, made.pictures, strict=True)
            for seed, picture in zip(made.seeds, row, strict=True)
            if made.update == run.updates
        }
        if run.comm.rank == 0:
            for path, (_, picture) in singles.items():
                replace_file(run.output / path, report.png(picture))
            sheet = report.grid(
                made.pictures,
                made.prompts,
                title=f"after update {made.update}",
                columns=[f"seed {seed}" for seed in made.seeds],
            )
            replace_file(run.output / made.grid, report.png(sheet))
            log.info("Pictures after update %d: %s", made.update, run.output / made.grid)
        files = tuple((prompt, path) for path, (prompt, _) in singles.items())
        return dataclasses.replace(made, files=files)


def _name(number: int, prompt: str) -> str:
    letters = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:NAME_LETTERS].strip("-")
    return f"{number}-{letters}" if letters else str(number)
