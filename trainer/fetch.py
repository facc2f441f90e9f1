"""What the user names by a folder, a file or a hub id: found here, or downloaded."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .config import ConfigError
from .errors import Unreachable


def folder(flag: str, name: str, *, allow: Sequence[str], ignore: Sequence[str] = (),
           cache_dir: str | None = None, revision: str | None = None) -> Path:  # fmt: skip
    """A folder of this name, or the download of a repository. Raises ConfigError, and Unreachable
    if the hub only failed for now."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ConfigError(f"{flag} {name} is a file: a folder in diffusers' layout is needed.")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(f"{flag} {name}: there is no such folder, and it is no hub id (a/b).")
    try:
        found = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=list(allow),
            ignore_patterns=list(ignore),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as err:
        if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = " ".join(str(err).split())
        raise (Unreachable if _may_pass(err) else ConfigError)(
            f"{flag} {name}: there is no such folder here, and the hub did not give it ({reason})."
        ) from err
    return Path(found)


def _may_pass(err: Exception) -> bool:
    """Whether the hub, or the network, may give it another time."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    response = getattr(err, "response", None) if isinstance(err, HfHubHTTPError) else None
    if response is not None:
        return bool(response.status_code >= 500 or response.status_code == 429)
    return isinstance(err, OSError) and not constants.HF_HUB_OFFLINE


def tensors(flag: str, name: str, path: Path) -> list[str]:
    """The names of a safetensors file's tensors; its header tells how long the file must be."""
    try:
        with safe_open(path, "np") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as err:
        reason = " ".join(str(err).split())
        raise ConfigError(f"{flag} {name}: {path} can't be read ({reason}): copy or download it "
                          "again.") from err  # fmt: skip
