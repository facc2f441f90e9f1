"""A dataset of the `datasets` library to examples: from the hub, a local folder, or saved to disk.

Everything after this works with picture files. A row that names a file is taken as it is; pictures
that lie inside of the dataset's own files are written out once, each under the digest of its
content, so that all ranks and later runs see the same files, whoever wrote them.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import images
from .atomic import replace_file
from .captions import one_line
from .errors import DataError
from .examples import SUFFIXES, Example, Listing, repeated

SPLIT = "train"


def from_dataset(
    name: str,
    *,
    caption: str,
    keep: Path,
    config_name: str | None = None,
    image_column: str = "image",
    caption_column: str | None = None,
    cache_dir: Path | None = None,
    repeats: int = 1,
    writer: str = "",
) -> Listing:
    """The rows of the split "train" of a dataset, each `repeats` times.

    name: an id on the hub, or a folder. caption: for rows that have none of their own. keep: the
    folder for pictures that are no files yet. cache_dir: where the library keeps what it loads.
    writer: as of `replace_file`.
    """
    table = _load(name, config_name, cache_dir)
    _check(name, table.column_names, image_column=image_column, caption_column=caption_column)
    others = [column for column in table.column_names if column != image_column]
    table = _undecoded(name, table, image_column, caption_column)
    pictures = _Pictures(keep, writer)
    examples, without = [], 0
    for number, row in enumerate(table):
        where = f"--dataset_name {name}, row {number} (counted from 0)"
        own = _caption(row[caption_column], where) if caption_column else ""
        without += not own
        image = pictures.file(row[image_column], where)
        examples.append(Example(file=str(image), caption=own or caption))
    return Listing(
        examples=repeated(examples, repeats),
        remark=_remark(name, len(examples), without, caption_column, others),
    )


def _load(name: str, config_name: str | None, cache_dir: Path | None) -> Any:
    try:
        import datasets
    except ImportError as err:
        raise DataError(
            f"--dataset_name needs the datasets library, which cannot be imported ({err}): "
            'pip install datasets "pyarrow<26"'
        ) from err
    folder = Path(name).expanduser()
    if folder.is_file():
        raise DataError(f"--dataset_name {name} is a file: pass the folder that holds it")
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise DataError(f"--dataset_name {name}: there is no such folder, and it is no hub id")
    with _quiet(datasets):
        try:
            if _is_saved(folder):
                return _saved(name, datasets.load_from_disk(folder), config_name)
            return datasets.load_dataset(
                str(folder) if folder.is_dir() else name,
                config_name,
                split=SPLIT,
                cache_dir=str(cache_dir) if cache_dir else None,
            )
        except DataError:
            raise
        # Its readers of a dozen formats raise what they stumble over.
        except Exception as err:
            raise DataError(
                f"--dataset_name {name} cannot be loaded ({_reason(err)}): check the name, the "
                "files, or the network; a folder with a copy does as well"
            ) from err


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the libraries' own words: each retry, and each error before it is raised."""
    datasets.disable_progress_bars()
    loggers = [logging.getLogger(library) for library in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it, of which the library wants to be told."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _saved(name: str, found: Any, config_name: str | None) -> Any:
    if config_name is not None:
        raise DataError(
            f"--dataset_name {name} was saved by save_to_disk, so it has no configurations: leave "
            f"--dataset_config_name {config_name} out"
        )
    if not isinstance(found, dict):
        return found
    if SPLIT not in found:
        raise DataError(f"--dataset_name {name} has no split {SPLIT}, only {', '.join(found)}")
    return found[SPLIT]


def _reason(err: BaseException) -> str:
    """On one line; what is raised while a dataset is prepared says why only in its cause."""
    if err.__cause__ is not None and type(err).__module__.startswith("datasets."):
        return _reason(err.__cause__)
    return one_line(str(err)) or type(err).__name__


def _check(name: str, columns: list[str], **asked: str | None) -> None:
    for flag, column in asked.items():
        if column is not None and column not in columns:
            raise DataError(
                f"--dataset_name {name} has no column {column}, only {', '.join(columns)}: pass "
                f"--{flag}"
            )


def _undecoded(name: str, table: Any, image_column: str, caption_column: str | None) -> Any:
    """Only the columns that are needed; pictures as they are stored: {"path": ..., "bytes": ...}"""
    from datasets import Image

    columns = [image_column] if caption_column is None else [image_column, caption_column]
    try:
        return table.select_columns(columns).cast_column(image_column, Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as err:
        raise DataError(
            f"--dataset_name {name}: column {image_column} holds no pictures but "
            f"{table.features[image_column]}, pass --image_column"
        ) from err


def _caption(value: Any, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: its caption is {str(value)[:40]}, a text is needed")
    return one_line(value or "")


class _Pictures:
    """Files with the pictures of rows; `keep` is where those are written that are none yet."""

    def __init__(self, keep: Path, writer: str) -> None:
        self._keep = keep
        self._writer = writer
        self._archives: dict[str, Any] = {}

    def file(self, stored: dict[str, Any] | None, where: str) -> Path:
        """The file of one row, which can be read as a picture."""
        path, content = (stored["path"], stored["bytes"]) if stored else (None, None)
        if content is None and path and "::" in path:
            content = self._in_archive(path)
        if content is not None:
            found = self._kept(content, Path((path or "").partition("::")[0]).suffix.lower())
        elif not path:
            raise DataError(f"{where} has no picture: remove the row")
        elif not (found := Path(path)).is_file():
            raise DataError(
                f"{where} names {path}, which is no file here: correct or remove the row"
            )
        try:
            images.probe(found)
        except DataError as err:
            raise DataError(f"{where}: {err}") from err
        return found

    def _in_archive(self, path: str) -> bytes:
        """What "zip://dog1.png::/data/train.zip" names; each archive's table is read once."""
        import fsspec

        member, _, archive = path.partition("::")
        protocol, _, inside = member.partition("://")
        if archive not in self._archives:
            self._archives[archive] = fsspec.filesystem(protocol, fo=archive)
        return bytes(self._archives[archive].cat_file(inside))

    def _kept(self, content: bytes, suffix: str) -> Path:
        digest = hashlib.sha256(content).hexdigest()
        path = self._keep / f"{digest}{suffix if suffix in SUFFIXES else ''}"
        if not _is_whole(path, len(content)):
            try:
                replace_file(path, content, writer=self._writer)
            except OSError as err:
                raise DataError(
                    f"the pictures of the dataset cannot be written to {self._keep} "
                    f"({err.strerror}): make room there, or choose another folder with "
                    "--latent_cache_dir"
                ) from err
        return path


def _is_whole(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False


def _remark(
    name: str, rows: int, without: int, caption_column: str | None, others: list[str]
) -> str | None:
    if caption_column is not None:
        return (
            f"{rows - without} of {rows} rows of {name} have captions of their own, {without} the "
            "instance prompt"
        )
    if others:
        return (
            f"all {rows} rows of {name} have the instance prompt: without --caption_column, "
            f"{', '.join(others)} are not read"
        )
    return None
