"""Rows of a dataset become picture files and captions; what it lacks is told in one line.

The library looks at its environment when it is imported, so what depends on that is asked in a
process of its own.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from no_torch import no_torch
from PIL import Image

from mindbooth.data.errors import DataError
from mindbooth.data.examples import Example
from mindbooth.data.hub_dataset import from_dataset

with no_torch():
    datasets = pytest.importorskip("datasets")

PROMPT = "a photo of sks dog"
CAPTIONS = ["海边的一只狗", "very " * 5000 + "long", None, "", " a dog,\n running "]
TIDY = ["海边的一只狗", "very " * 5000 + "long", PROMPT, PROMPT, "a dog, running"]

# Each line in: a name. The line out: what was raised.
ASK = """
import sys
from pathlib import Path
from mindbooth.data.errors import DataError
from mindbooth.data.hub_dataset import from_dataset
for name in sys.stdin.read().split():
    try:
        from_dataset(name, caption="", keep=Path("keep"))
    except DataError as err:
        print(err)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture for each of CAPTIONS, in imagefolder layout."""
    folder = tmp_path_factory.mktemp("pictures")
    names = [f"dog{number}.png" for number in range(len(CAPTIONS))]
    for number, name in enumerate(names):
        Image.fromarray(np.full((8, 9, 3), number, np.uint8)).save(folder / name)
    rows = ({"file_name": n, "text": c} for n, c in zip(names, CAPTIONS, strict=True))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def embedded(pictures: Path) -> Any:
    """The same with the pictures' bytes in the rows."""
    names = [f"dog{number}.png" for number in range(len(CAPTIONS))]
    stored = [{"bytes": (pictures / name).read_bytes(), "path": name} for name in names]
    return table(image=stored, text=CAPTIONS)


def table(**columns: list[Any]) -> Any:
    kinds = {name: datasets.Value("string") for name in columns} | {"image": datasets.Image()}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def parquet(folder: Path, rows: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / "rows.parquet")
    return folder


def as_folder(own: Path, pictures: Path, embedded: Any) -> Path:
    return pictures


def as_parquet(own: Path, pictures: Path, embedded: Any) -> Path:
    return parquet(own / "rows", embedded)


def as_saved(own: Path, pictures: Path, embedded: Any) -> Path:
    embedded.save_to_disk(own / "rows")
    return own / "rows"


def as_saved_splits(own: Path, pictures: Path, embedded: Any) -> Path:
    datasets.DatasetDict({"train": embedded}).save_to_disk(own / "rows")
    return own / "rows"


def as_arrow(own: Path, pictures: Path, embedded: Any) -> Path:
    (own / "rows").mkdir()
    (next(as_saved(own / "saved", pictures, embedded).glob("*.arrow"))).rename(
        own / "rows" / "rows.arrow"
    )
    return own / "rows"


def as_json(own: Path, pictures: Path, embedded: Any) -> Path:
    (own / "rows").mkdir()
    text = (pictures / "metadata.jsonl").read_text().replace("file_name", "image")
    (own / "rows" / "rows.jsonl").write_text(text.replace('"dog', f'"{pictures}/dog'))
    return own / "rows"


def as_zip(own: Path, pictures: Path, embedded: Any) -> Path:
    (own / "rows").mkdir()
    with zipfile.ZipFile(own / "rows" / "train.zip", "w") as archive:
        for file in pictures.iterdir():
            archive.write(file, file.name)
    return own / "rows"


Layout = Callable[[Path, Path, Any], Path]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def call(folder: Path | str, **options: Any) -> Any:
        keep, cache = tmp_path / "keep", tmp_path / "cache"
        return from_dataset(str(folder), caption=PROMPT, keep=keep, cache_dir=cache, **options)

    return call


def contents(examples: tuple[Example, ...]) -> list[bytes]:
    return [example.image.read_bytes() for example in examples]


@pytest.mark.parametrize(
    "layout",
    [
        as_folder, as_parquet, as_saved, as_saved_splits, as_arrow, as_json, as_zip,
    ],
)  # fmt: skip
def test_every_layout_gives_the_same_pictures_and_captions(
    tmp_path: Path, pictures: Path, embedded: Any, load: Callable[..., Any], layout: Layout
) -> None:
    name = layout(tmp_path, pictures, embedded)
    listing = load(name, caption_column="text")
    assert contents(listing.examples) == [
        (pictures / f"dog{number}.png").read_bytes() for number in range(len(CAPTIONS))
    ]
    assert [example.caption for example in listing.examples] == TIDY
    assert all(example.image.suffix == ".png" for example in listing.examples)
    assert listing.remark == (
        f"3 of 5 rows of {name} have captions of their own, 2 the instance prompt"
    )


def test_pictures_that_are_files_are_not_copied(
    tmp_path: Path, pictures: Path, load: Callable[..., Any]
) -> None:
    assert {example.image.parent for example in load(pictures).examples} == {pictures}
    assert not (tmp_path / "keep").exists()


def test_pictures_inside_of_the_dataset_are_written_once(
    tmp_path: Path, embedded: Any, load: Callable[..., Any]
) -> None:
    rows = parquet(tmp_path / "rows", datasets.concatenate_datasets([embedded, embedded]))
    first = load(rows)
    written = {path: path.stat().st_ino for path in (tmp_path / "keep").iterdir()}
    assert len(written) == len(CAPTIONS)
    assert len(first.examples) == 2 * len(CAPTIONS)
    assert load(rows) == first
    assert {path: path.stat().st_ino for path in (tmp_path / "keep").iterdir()} == written


def test_a_picture_that_was_cut_short_is_written_again(
    tmp_path: Path, embedded: Any, load: Callable[..., Any]
) -> None:
    rows = parquet(tmp_path / "rows", embedded)
    before = contents(load(rows).examples)
    for path in (tmp_path / "keep").iterdir():
        path.write_bytes(b"")
    assert contents(load(rows).examples) == before


def test_without_a_caption_column_all_have_the_prompt_and_the_others_are_named(
    pictures: Path, load: Callable[..., Any]
) -> None:
    listing = load(pictures)
    assert {example.caption for example in listing.examples} == {PROMPT}
    assert listing.remark is not None
    assert "without --caption_column, text " in listing.remark


def test_a_dataset_of_pictures_alone_gives_no_remark(
    tmp_path: Path, embedded: Any, load: Callable[..., Any]
) -> None:
    rows = parquet(tmp_path / "rows", embedded.rename_column("image", "picture"))
    only = parquet(tmp_path / "only", embedded.select_columns(["image"]))
    assert load(rows, image_column="picture", caption_column="text").remark is not None
    assert load(only).remark is None


def test_repeats_repeat_each_row(pictures: Path, load: Callable[..., Any]) -> None:
    names = [example.image.name for example in load(pictures, repeats=2).examples]
    assert names == [f"dog{number}.png" for number in range(len(CAPTIONS)) for _ in range(2)]


def one_row(own: Path, **columns: Any) -> Path:
    return parquet(own / "rows", table(**{name: [value] for name, value in columns.items()}))


def saved_with(own: Path, **splits: Any) -> Path:
    datasets.DatasetDict(splits).save_to_disk(own / "rows")
    return own / "rows"


def file_with(own: Path, name: str, content: bytes) -> Path:
    (own / "rows").mkdir()
    (own / "rows" / name).write_bytes(content)
    return own / "rows"


SOUND = {"bytes": b"P6 1 1 255 abc", "path": None}
BAD: dict[str, tuple[Callable[[Path], Path], dict[str, str], str]] = {
    "no such image column": (
        lambda own: one_row(own, image=SOUND, text="x"),
        {"image_column": "img"},
        "has no column img, only image, text: pass --image_column",
    ),
    "no such caption column": (
        lambda own: one_row(own, image=SOUND, text="x"),
        {"caption_column": "caption"},
        "has no column caption, only image, text: pass --caption_column",
    ),
    "image column of numbers": (
        lambda own: file_with(own, "rows.csv", b"image,text\n7,x\n"),
        {},
        "column image holds no pictures but Value('int64')",
    ),
    "captions that are numbers": (
        lambda own: file_with(own, "rows.jsonl", b'{"image": "a.png", "text": 7}\n'),
        {"caption_column": "text"},
        "row 0 (counted from 0): its caption is 7",
    ),
    "row without a picture": (
        lambda own: one_row(own, image=None),
        {},
        "row 0 (counted from 0) has no picture",
    ),
    "row with bytes that are no picture": (
        lambda own: one_row(own, image={"bytes": b"hello", "path": "a.png"}),
        {},
        "row 0 (counted from 0): ",
    ),
    "row that names a file that is not there": (
        lambda own: file_with(own, "rows.csv", b"image\nhttp://127.0.0.1:9/a.png\n"),
        {},
        "row 0 (counted from 0) names http://127.0.0.1:9/a.png, which is no file here",
    ),
    "no rows": (
        lambda own: file_with(own, "rows.csv", b"image,text\n"),
        {},
        "no data",
    ),
    "no split train, saved": (
        lambda own: saved_with(own, test=table(image=[SOUND])),
        {},
        "has no split train, only test",
    ),
    "no split train": (
        lambda own: file_with(own, "test.csv", b"image\na.png\n"),
        {},
        "test",
    ),
    "saved, with a configuration": (
        lambda own: saved_with(own, train=table(image=[SOUND])),
        {"config_name": "large"},
        "leave --dataset_config_name large out",
    ),
    "no such configuration": (
        lambda own: one_row(own, image=SOUND),
        {"config_name": "large"},
        "large",
    ),
    "broken parquet": (
        lambda own: file_with(own, "rows.parquet", b"PAR1 and no more"),
        {},
        "Parquet magic bytes not found",
    ),
    "broken JSON": (
        lambda own: file_with(own, "rows.jsonl", b'{"image":\n'),
        {},
        "JSON parse error",
    ),
    "empty folder": (lambda own: file_with(own, ".hidden", b""), {}, "doesn't contain any data"),
    "a file": (lambda own: file_with(own, "rows.csv", b"image") / "rows.csv", {}, "is a file"),
    "no such folder": (lambda own: own / "nowhere", {}, "there is no such folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_dataset_is_told_in_one_line(
    tmp_path: Path, load: Callable[..., Any], capfd: pytest.CaptureFixture[str], case: str
) -> None:
    make, options, told = BAD[case]
    name = make(tmp_path)
    capfd.readouterr()
    with pytest.raises(DataError) as raised:
        load(name, **options)
    assert str(name) in str(raised.value)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path, embedded: Any) -> None:
    (tmp_path / "taken").write_text("a file")
    rows = parquet(tmp_path / "rows", embedded)
    with pytest.raises(DataError, match="--latent_cache_dir"):
        from_dataset(str(rows), caption="", keep=tmp_path / "taken" / "keep", cache_dir=tmp_path)


def ask(names: str, cwd: Path, **environ: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK],
        input=names,
        cwd=cwd,
        env={**os.environ, "USE_TORCH": "0", "HF_HOME": str(cwd / "home"), **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def test_a_hub_that_is_not_asked_is_told_in_one_line(tmp_path: Path) -> None:
    told = ask("someone/dogs dogs ./dogs a/b/c", tmp_path, HF_HUB_OFFLINE="1")
    assert [line.split()[1].strip(":") for line in told] == [
        "someone/dogs", "dogs", "./dogs", "a/b/c",
    ]  # fmt: skip
    assert all("Couldn't reach" in line for line in told[:2])
    assert all("no hub id" in line for line in told[2:])


def test_a_library_that_is_not_installed_is_told_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "datasets.py").write_text("raise ModuleNotFoundError('not here')\n")
    (told,) = ask("someone/dogs", tmp_path, PYTHONPATH=str(tmp_path))
    assert 'pip install datasets "pyarrow<26"' in told
