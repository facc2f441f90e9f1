"""A picture gets the caption that stands for it in its folder; a bad one is told with its line."""

import json
from pathlib import Path

import pytest

from mindbooth.data.errors import DataError
from mindbooth.data.examples import from_folder

PROMPT = "a photo of sks dog"


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def captions(folder: Path) -> dict[str, str]:
    examples = from_folder(folder, caption=PROMPT).examples
    return {example.image.relative_to(folder).as_posix(): example.caption for example in examples}


def rows(*entries: object) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def test_metadata_goes_before_a_text_file_and_that_before_the_prompt(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "1.png": "", "2.png": "", "3.png": "", "1.txt": "text 1", "2.txt": "text 2",
            "metadata.jsonl": rows({"file_name": "1.png", "text": "row 1"}),
        },
    )  # fmt: skip
    assert captions(tmp_path) == {"1.png": "row 1", "2.png": "text 2", "3.png": PROMPT}


def test_the_remark_counts_captions_and_names_those_that_were_not_used(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "1.png": "", "2.png": "", "3.png": "", "1.txt": "overruled", "2.txt": "text 2",
            "3.txt": " \n", "4.txt": "no picture", "below/5.png": "", "apart/6.png": "",
            "metadata.jsonl": rows(
                {"file_name": "1.png", "text": "row 1"}, {"file_name": "below/5.png", "text": "5"}
            ),
        },
    )  # fmt: skip
    assert from_folder(tmp_path, caption=PROMPT).remark == (
        f"3 of 4 pictures in {tmp_path} have captions of their own, 1 the instance prompt; "
        f"empty: 3.txt; passed over in {tmp_path}: 1.txt, 4.txt, apart/"
    )


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ("a dog in the sea\n", "a dog in the sea"),
        ("\n\n  a dog,\r\nin  the sea \n", "a dog, in the sea"),
        (b"\xef\xbb\xbfa dog", "a dog"),
        ("海边的一只狗 🐕", "海边的一只狗 🐕"),
        ("very " * 20_000 + "long", "very " * 20_000 + "long"),
        ("", PROMPT),
        (b"\xef\xbb\xbf \n", PROMPT),
    ],
)
def test_a_text_file_is_read_as_one_line(
    tmp_path: Path, content: str | bytes, caption: str
) -> None:
    assert captions(write(tmp_path, {"a.png": "", "a.txt": content})) == {"a.png": caption}


def test_pictures_of_one_stem_share_a_text_file(tmp_path: Path) -> None:
    write(tmp_path, {"my.dog.jpg": "", "my.dog.png": "", "my.dog.txt": "a dog", "my.txt": "no"})
    assert captions(tmp_path) == {"my.dog.jpg": "a dog", "my.dog.png": "a dog"}


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_the_caption_may_stand_in_any_of_three_columns(
    tmp_path: Path, column: str, kind: str
) -> None:
    table = {
        "jsonl": rows({"id": 7, "file_name": "a.png", column: '狗, "x"'}),
        "csv": f'\ufefffile_name,id,{column}\r\na.png,7,"狗, ""x"""\r\n',
    }[kind]
    assert captions(write(tmp_path, {"a.png": "", f"metadata.{kind}": table})) == {
        "a.png": '狗, "x"'
    }


@pytest.mark.parametrize("entry", [{"text": None}, {"text": "  "}, {}])
def test_a_row_without_a_caption_leaves_it_to_the_text_file(
    tmp_path: Path, entry: dict[str, object]
) -> None:
    table = rows({"file_name": "./a.png"} | entry, {"file_name": "b.png"} | entry)
    write(tmp_path, {"a.png": "", "a.txt": "text", "b.png": "", "metadata.jsonl": table})
    assert captions(tmp_path) == {"a.png": "text", "b.png": PROMPT}


def test_a_picture_in_a_subfolder_counts_if_a_row_names_it(tmp_path: Path) -> None:
    table = rows({"file_name": "train/b2.png", "text": "row"}, {"file_name": "train/deep/b10.png"})
    write(
        tmp_path,
        {
            "z.png": "", "train/b2.png": "", "train/b3.png": "", "train/deep/b10.png": "",
            "train/deep/b10.txt": "text", "metadata.jsonl": table,
        },
    )  # fmt: skip
    found = captions(tmp_path)
    assert found == {"train/b2.png": "row", "train/deep/b10.png": "text", "z.png": PROMPT}
    assert list(found) == ["train/b2.png", "train/deep/b10.png", "z.png"]


def test_pictures_may_all_be_in_subfolders(tmp_path: Path) -> None:
    table = rows({"file_name": "train/a.png", "text": "row"})
    write(tmp_path, {"train/a.png": "", "metadata.jsonl": table})
    assert captions(tmp_path) == {"train/a.png": "row"}


GOOD = '{"file_name": "a.png", "text": "x"}\n'


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("metadata.jsonl", GOOD + '\n{"file_name": "b.png",\n', "line 3 is no JSON"),
        ("metadata.jsonl", "[\n" + GOOD, "line 1 is no JSON"),
        ("metadata.jsonl", '["a.png", "x"]', "each line needs to be a row like"),
        ("metadata.jsonl", GOOD + GOOD, "line 2 names a.png, and so does "),
        ("metadata.jsonl", GOOD + GOOD.replace("a.png", "./a.png"), "line 2 names a.png, and so"),
        ("metadata.jsonl", GOOD.replace("a.png", "A.png"), "line 1 names A.png, which is not in "),
        ("metadata.jsonl", GOOD.replace("a.png", "sub/a.png"), "line 1 names sub/a.png, which is"),
        ("metadata.jsonl", GOOD.replace("a.png", "../a.png"), "line 1 names ../a.png, outside of"),
        ("metadata.jsonl", GOOD.replace("a.png", "/a.png"), "line 1 names /a.png, outside of"),
        ("metadata.jsonl", GOOD.replace("a.png", r"\u0000/a.png"), r"names '\x00/a.png', which is"),
        ("metadata.jsonl", GOOD.replace("a.png", r"\ud800/a.png"), r"names '\ud800/a.png', which"),
        ("metadata.jsonl", GOOD.replace("a.png", r"a\u0000.png"), r"names 'a\x00.png', which is"),
        ("metadata.jsonl", '{"image": "a.png", "text": "x"}', "needed, found image, text"),
        ("metadata.jsonl", GOOD.replace('"x"', '["x"]'), 'line 1: text is ["x"], a text is'),
        ("metadata.jsonl", GOOD.replace('"x"', "7"), "line 1: text is 7, a text is"),
        ("metadata.jsonl", GOOD.replace('"x"', r'"\ud83d"'), r'text is "\ud83d", a text is'),
        ("metadata.jsonl", GOOD.replace("text", "texts"), "has no text, caption, prompt, only "),
        ("metadata.jsonl", GOOD.encode() + b'{"\xff', "metadata.jsonl line 2 is not UTF-8"),
        ("metadata.csv", "file_name,text\na.png,a dog, running\n", "line 2 has more cells"),
        ("metadata.csv", 'file_name,text\na.png,"a dog" x\n', "line 2 is no CSV"),
        ("metadata.csv", "a.png,x\nb.png,y\n", "line 2 names no picture: a file_name is needed"),
        ("a.txt", b"a dog\nna\xefve\n", "a.txt line 2 is not UTF-8"),
    ],
)  # fmt: skip
def test_a_bad_caption_is_told_with_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    with pytest.raises(DataError) as raised:
        from_folder(write(tmp_path, {"a.png": "", name: content}), caption=PROMPT)
    assert str(tmp_path / name) in str(raised.value)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_metadata_files_are_one_too_many(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": "", "metadata.jsonl": GOOD, "metadata.csv": "file_name,text\n"})
    with pytest.raises(DataError, match=r"metadata\.jsonl and metadata\.csv: keep one"):
        from_folder(tmp_path, caption=PROMPT)
