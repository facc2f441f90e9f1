"""Captions that stand beside pictures: `metadata.jsonl` or `metadata.csv`, and `.txt` files.

The metadata files are those of Hugging Face's imagefolder: a row a picture, with `file_name` and a
caption. What is wrong with one is told with file and line, because nobody reads ten thousand lines
to find it. Folders are listed once and no name is asked for: a hundred thousand questions to a
network file system take minutes.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("text", "caption", "prompt")
# Characters cut in half, as by programs that count in 16 bits.
_HALVES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What captions a folder holds.

    own: by the name of the picture. named: pictures that the metadata names, also in subfolders.
    used: names in the folder that were read. empty: text files without a caption.
    """

    own: Mapping[str, str] = field(default_factory=dict)
    named: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()
    empty: tuple[str, ...] = ()


class _Row(NamedTuple):
    """What a metadata file says of a picture. caption: empty if it says none."""

    line: int
    caption: str


def of_folder(folder: Path, names: AbstractSet[str], pictures: Iterable[str]) -> Captions:
    """The captions of these pictures in `folder`, of which `names` are all names."""
    metadata = [name for name in METADATA if name in names]
    if len(metadata) > 1:
        raise DataError(f"{folder} holds {' and '.join(metadata)}: keep one of them")
    rows = _rows(folder / metadata[0]) if metadata else {}
    inside = _inside(folder, names, rows)
    if metadata:
        _check(folder / metadata[0], rows, inside)
    own = {name: row.caption for name, row in rows.items() if row.caption}
    used = {*metadata, *(name.split("/")[0] + "/" for name in rows if "/" in name)}
    texts = {name for name in inside if name.endswith(".txt")}
    empty = []
    for name in dict.fromkeys((*pictures, *rows)) if texts else ():
        text = os.path.splitext(name)[0] + ".txt"
        if name not in own and text in texts:
            used.add(text)
            if caption := one_line(_text(os.path.join(folder, text))):
                own[name] = caption
            else:
                empty.append(text)
    return Captions(
        own=own, named=frozenset(rows), used=frozenset(used), empty=tuple(dict.fromkeys(empty))
    )


def _rows(path: Path) -> dict[str, _Row]:
    """The rows of a metadata file by the names of their pictures, relative to its folder."""
    rows: dict[str, _Row] = {}
    for line, row in (_csv_rows if path.suffix == ".csv" else _json_rows)(path):
        where = f"{path} line {line}"
        name = _picture_of(row, where)
        if name in rows:
            raise DataError(
                f"{where} names {name}, and so does {path} line {rows[name].line}: remove one of "
                "them"
            )
        rows[name] = _Row(line, _caption_of(row, where))
    return rows


def _inside(folder: Path, names: AbstractSet[str], rows: Iterable[str]) -> set[str]:
    """All names in the folder and in the subfolders that the rows name."""
    inside = set(names)
    for below in {os.path.dirname(name) for name in rows} - {""}:
        # Told by `_check`, with the line that names it. ValueError: no such name can be.
        with suppress(OSError, ValueError):
            inside |= {f"{below}/{name}" for name in os.listdir(folder / below)}
    return inside


def _check(path: Path, rows: Mapping[str, _Row], inside: AbstractSet[str]) -> None:
    for name, row in rows.items():
        if name not in inside:
            raise DataError(
                f"{path} line {row.line} names {_legible(name)}, which is not in {path.parent}: "
                "correct file_name, or remove the line"
            )


def one_line(text: str) -> str:
    """Line breaks and runs of blanks as single blanks: CLIP's tokenizers read them so anyway."""
    return " ".join(text.split())


def _picture_of(row: dict[Any, Any], where: str) -> str:
    given = row.get("file_name")
    if not isinstance(given, str) or not given:
        raise DataError(f"{where} names no picture: a file_name is needed, found {_shown(row)}")
    # A `PurePosixPath` says the same, in six times the time.
    parts = [part for part in given.split("/") if part not in ("", ".")]
    if given[0] == "/" or ".." in parts:
        raise DataError(
            f"{where} names {_legible(given)}, outside of its folder: file_name is relative to it"
        )
    return "/".join(parts) or "."


def _caption_of(row: dict[Any, Any], where: str) -> str:
    column = next((column for column in COLUMNS if column in row), None)
    if column is None:
        if len(row) == 1:  # the name alone
            return ""
        raise DataError(
            f"{where} has no {', '.join(COLUMNS)}, only {_shown(row)}: give the caption's column "
            "one of these names"
        )
    caption = row[column] if row[column] is not None else ""
    if not isinstance(caption, str) or _HALVES.search(caption):
        raise DataError(f"{where}: {column} is {json.dumps(caption)[:40]}, a text is needed")
    return one_line(caption)


def _legible(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _shown(row: dict[Any, Any]) -> str:
    return ", ".join(map(str, row)) or "nothing"


def _json_rows(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    # Not splitlines(): some characters that it splits at may stand in a JSON text.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as err:
            raise DataError(f"{path} line {number} is no JSON ({err}): correct it") from err
        if not isinstance(row, dict):
            raise DataError(
                f"{path} line {number} is {line.strip()[:40]}: each line needs to be a row like "
                '{"file_name": "dog1.jpg", "text": "a photo of sks dog"}'
            )
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[Any, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                raise DataError(
                    f"{path} line {reader.line_num} has more cells than the first line: put a "
                    'caption with commas into "double quotes"'
                )
            yield reader.line_num, row
    except csv.Error as err:
        raise DataError(
            f"{path} line {reader.reader.line_num} is no CSV ({err}): correct it"
        ) from err


def _text(path: str | Path) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        return content.decode("utf-8-sig")
    except OSError as err:
        raise DataError(f"{path} cannot be read ({err.strerror}): check its permissions") from err
    except UnicodeDecodeError as err:
        line = content.count(b"\n", 0, err.start) + 1
        raise DataError(f"{path} line {line} is not UTF-8: save the file as UTF-8") from err
