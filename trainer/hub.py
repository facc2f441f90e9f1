"""--push_to_hub: the finished adapter, its card and its pictures on the Hugging Face hub.

`check` comes before training, so that a token that may not write costs nothing; `push` comes after
all is on disk, so that a lost connection loses nothing. Both are for rank 0. Whatever goes wrong is
told in one line, and never with the token in it.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from .card import is_folder
from .config import ConfigError, OutputConfig, TrainConfig
from .export import KOHYA_NAME, NAME

log = logging.getLogger(__name__)


def check(config: TrainConfig) -> str:
    """The full name of the repository, which is made where there is none. Raises ConfigError."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    name = _name(config.output)
    token = _token(config.output)
    api = HfApi(token=token)
    try:
        repository = str(api.create_repo(name, exist_ok=True).repo_id)
        # An existing repository of somebody else passes so far. The hub is asked how it would take
        # a small file, which needs the right to write; the file itself is not sent.
        api.preupload_lfs_files(repository, [CommitOperationAdd("README.md", b"---\n")])
    except _errors() as err:
        raise ConfigError(
            f"--push_to_hub: {constants.ENDPOINT} does not let {name} be written "
            f"({_reason(err, token)}). Give a token that may write and a --hub_model_id of yours, "
            "or leave --push_to_hub out."
        ) from err
    model = config.model.pretrained_model_name_or_path
    if is_folder(model):
        log.warning(
            "The hub's card can't name the folder %s as its base_model: add the model's hub id to "
            "README.md there.", model,
        )  # fmt: skip
    return repository


def push(folder: Path, repository: str, config: OutputConfig, pictures: Sequence[str]) -> bool:
    """Uploads a run's adapter, card, options and `pictures` (paths in the folder), and nothing
    else that lies there; False if that failed."""
    from huggingface_hub import HfApi

    token = ""
    wanted = [NAME, "README.md", "config.yaml", *pictures]
    if config.output_kohya_format:
        wanted.append(KOHYA_NAME)
    try:
        token = _token(config)
        done = HfApi(token=token).upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Adapter, model card and pictures",
            allow_patterns=wanted,
        )
    except _errors() as err:
        command = ["hf", "upload", repository, str(folder), ".", "--include", *wanted]
        log.error(
            "The upload to %s failed (%s). Nothing is lost: all is in %s. To upload it again: %s",
            repository, _reason(err, token), folder, shlex.join(command),
        )  # fmt: skip
        return False
    log.info("Uploaded: %s", done.commit_url)
    return True


def _name(config: OutputConfig) -> str:
    return config.hub_model_id or Path(config.output_dir).expanduser().resolve().name


def _token(config: OutputConfig) -> str:
    """What was given, or what huggingface_hub knows: HF_TOKEN, or that of `hf auth login`."""
    from huggingface_hub import get_token

    token = config.hub_token or get_token()
    if token is None:
        raise ConfigError(
            "--push_to_hub needs a token that may write, and there is none: set HF_TOKEN, run "
            "`hf auth login`, or give --hub_token."
        )
    if not re.fullmatch("[!-~]+", token):  # an HTTP library would quote it in its complaint
        raise ConfigError(
            "The hub's token has a space or another character that no token has: give the token "
            "alone, as in hf_abc."
        )
    return token


def _errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: of HTTP (an OSError), of names and cards, of a file's upload."""
    from huggingface_hub.errors import XetError

    return OSError, ValueError, RuntimeError, XetError


def _reason(err: BaseException, token: str) -> str:
    """In one line. What was wrong with a file's upload stands in the RuntimeError's cause."""
    told = f"{err} {err.__cause__ or ''}" if isinstance(err, RuntimeError) else str(err)
    plain = " ".join(told.split())
    return plain.replace(token, "***") if token else plain
