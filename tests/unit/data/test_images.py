"""Every kind of file becomes the upright sRGB picture that its maker saw, or a clear error."""

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from mindbooth.data.errors import DataError
from mindbooth.data.framing import frame
from mindbooth.data.images import INTERPOLATIONS, load, probe, render

Pixels = NDArray[np.uint8]

# Two rows of three blocks, all of different colours: every turn and mirror shows.
BLOCKS = np.array(
    [
        [(255, 0, 0), (0, 255, 0), (0, 0, 255)],
        [(255, 255, 0), (0, 255, 255), (128, 128, 128)],
    ],
    dtype=np.uint8,
)
UPRIGHT: Pixels = BLOCKS.repeat(16, axis=0).repeat(16, axis=1)  # (32, 48, 3)

# How each orientation stores the upright picture a (EXIF 2.32: where row 0 and column 0 lie).
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.transpose(1, 0, 2),  # left, top
    6: lambda a: a[:, ::-1].transpose(1, 0, 2),  # right, top
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: lambda a: a[::-1].transpose(1, 0, 2),  # left, bottom
}
SAVED_AS = {
    "jpg": {"quality": 100, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
}


def oriented(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](UPRIGHT))
    Image.fromarray(stored).save(path, exif=exif, **SAVED_AS[path.suffix[1:]])
    return path


def pixels(path: Path) -> NDArray[np.int64]:
    image = load(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def photo(size: tuple[int, int] = (300, 400), seed: int = 0) -> Image.Image:
    """Something with detail, so that its compressed bytes are many."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", SAVED_AS)
def test_every_orientation_comes_out_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = oriented(tmp_path / f"a.{suffix}", orientation)
    assert np.abs(pixels(path) - UPRIGHT).max() <= 3
    assert probe(path) == (32, 48)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_sideways_tiffs_of_every_mode_come_out_upright(
    tmp_path: Path, mode: str, compression: str | None, orientation: int
) -> None:
    def converted(colours: Pixels) -> Image.Image:
        image = Image.fromarray(np.ascontiguousarray(colours))
        if mode == "I;16":
            return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        return image.convert(mode)

    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = tmp_path / "turned.tif"
    converted(STORED[orientation](UPRIGHT)).save(turned, exif=exif, compression=compression)
    colours = Image.fromarray(UPRIGHT)
    is_grey = mode in ("L", "I;16")
    expected = np.asarray(colours.convert("L").convert("RGB") if is_grey else colours)
    assert np.abs(pixels(turned) - expected).max() <= 1
    assert probe(turned) == (32, 48)


def chunks(png: bytes) -> list[bytes]:
    found, place = [], 8
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        found.append(png[place : place + 12 + length])
        place += 12 + length
    return found


def test_exif_behind_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    path = oriented(tmp_path / "a.png", 6)
    content = path.read_bytes()
    parts = chunks(content)
    late = sorted(parts, key=lambda part: (part[4:8] == b"IEND", part[4:8] == b"eXIf"))
    assert late != parts
    path.write_bytes(content[:8] + b"".join(late))
    assert np.array_equal(pixels(path), UPRIGHT)
    assert probe(path) == (32, 48)


def test_damaged_exif_is_told_and_taken_as_upright(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(UPRIGHT).save(path, exif=b"Exif\x00\x00no tiff header here")
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(pixels(path), UPRIGHT)
    assert probe(path) == (32, 48)
    assert str(path) in caplog.text


def test_an_infinite_orientation_is_told_and_taken_as_upright(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.png"
    # TIFF 6.0, a double in a directory of one entry; its value stands behind that.
    double, at = 12, 8 + 2 + 12 + 4
    entry = struct.pack("<HHII", 0x0112, double, 1, at)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + struct.pack("<d", math.inf)
    Image.fromarray(UPRIGHT).save(path, exif=b"Exif\x00\x00" + tiff)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(pixels(path), UPRIGHT)
    assert str(path) in caplog.text


def test_probe_reads_no_pixels(tmp_path: Path) -> None:
    """A picture whose pixels are all cut off still has a size."""
    plain = saved(Image.fromarray(UPRIGHT), tmp_path / "plain.png")
    for path in (oriented(tmp_path / "a.jpg", 6), oriented(tmp_path / "a.png", 6), plain):
        path.write_bytes(path.read_bytes()[:-60])
        assert probe(path) == (32, 48)
        with pytest.raises(DataError):
            load(path)


BLACK_HALF = Image.fromarray(np.tile(np.array([[0, 128]], np.uint8), (4, 1)))  # as an alpha


def with_alpha(mode: str) -> Image.Image:
    image = Image.new(mode, (2, 4), 0)
    image.putalpha(BLACK_HALF)
    return image


def palette() -> Image.Image:
    image = Image.new("P", (2, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 1, 4))
    return image


@pytest.mark.parametrize(
    ("image", "name", "options", "left", "right"),
    [
        # transparent black on the left, half transparent black on the right
        (with_alpha("RGB"), "rgba.png", {}, (255, 255, 255), (127, 127, 127)),
        (with_alpha("L"), "la.png", {}, (255, 255, 255), (127, 127, 127)),
        (with_alpha("RGB"), "rgba.webp", {"lossless": True}, (255,) * 3, (127,) * 3),
        (with_alpha("RGB"), "rgba.tif", {}, (255,) * 3, (127,) * 3),
        # palette: index 0 is red, 1 is blue
        (palette(), "p.png", {}, (255, 0, 0), (0, 0, 255)),
        (palette(), "p-one.png", {"transparency": 0}, (255, 255, 255), (0, 0, 255)),
        (palette(), "p-some.png", {"transparency": b"\x00\x80"}, (255,) * 3, (127, 127, 255)),
        (palette(), "p.gif", {"transparency": 0}, (255, 255, 255), (0, 0, 255)),
        # one colour declared transparent
        (Image.new("RGB", (2, 4), 9), "k.png", {"transparency": (9, 0, 0)}, (255,) * 3, (255,) * 3),
        (Image.new("L", (2, 4), 9), "l.png", {"transparency": 9}, (255,) * 3, (255,) * 3),
        (Image.new("I;16", (2, 4), 900), "i.png", {"transparency": 900}, (255,) * 3, (255,) * 3),
        (Image.new("L", (2, 4), 77), "grey.jpg", {}, (77, 77, 77), (77, 77, 77)),
        (Image.new("1", (2, 4), 1), "bit.png", {}, (255, 255, 255), (255, 255, 255)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_alpha_lies_on_white(
    tmp_path: Path,
    image: Image.Image,
    name: str,
    options: dict[str, object],
    left: tuple[int, ...],
    right: tuple[int, ...],
) -> None:
    result = pixels(saved(image, tmp_path / name, **options))
    assert result.shape == (4, 2, 3)
    assert np.abs(result[:, 0] - left).max() <= 1
    assert np.abs(result[:, 1] - right).max() <= 1


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [
        ((0, 0, 0, 0), (255, 255, 255)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_cmyk_is_not_inverted(
    tmp_path: Path, name: str, cmyk: tuple[int, ...], rgb: tuple[int, ...]
) -> None:
    path = saved(Image.new("CMYK", (16, 16), cmyk), tmp_path / name)
    if name.endswith("jpg"):
        assert b"Adobe" in path.read_bytes()  # which stores the inverse
    assert np.abs(pixels(path) - rgb).max() <= 2


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, name: str) -> None:
    ramp = np.tile(np.arange(0, 65536, 257, dtype=np.uint16), (4, 1))
    path = saved(Image.fromarray(ramp), tmp_path / name)
    assert np.array_equal(pixels(path)[0, :, 0], np.arange(256))


def test_16_bit_colour_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    """Pillow writes no such file: this one is put together by hand."""
    row = b"\x00" + struct.pack(">6H", 0, 32768, 65535, 257 * 10, 257 * 20, 257 * 30)
    path = png_file(tmp_path / "a.png", width=2, height=1, depth=16, colour_type=2, raw=row)
    assert np.abs(pixels(path) - [[(0, 128, 255), (10, 20, 30)]]).max() <= 1


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = saved(Image.new("F", (4, 4), 0.5), tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif holds floating-point pixels"):
        load(path)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_several_frames_the_first_counts(tmp_path: Path, name: str) -> None:
    first, second = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    path = tmp_path / name
    lossless = {"lossless": True} if name.endswith("webp") else {}
    first.save(path, save_all=True, append_images=[second], **lossless)
    with Image.open(path) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    assert np.array_equal(pixels(path), np.broadcast_to((255, 0, 0), (10, 20, 3)))


def red_and_green_swapped() -> bytes:
    """A profile under which a file's red is meant to be seen as green."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    head, table, rest = renamed[:132], renamed[132:400], renamed[400:]
    swapped = table.replace(b"rXYZ", b"####").replace(b"gXYZ", b"rXYZ").replace(b"####", b"gXYZ")
    assert swapped != table
    return head + swapped + rest


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (8, 8), (255, 0, 0)), (0, 255, 0)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), (0, 255, 0)),
        (Image.new("L", (8, 8), 100), (100, 100, 100)),
    ],
    ids=["RGB", "transparent", "opaque", "grey"],
)
def test_colours_go_through_the_embedded_profile(
    tmp_path: Path, image: Image.Image, expected: tuple[int, ...]
) -> None:
    path = saved(image, tmp_path / "a.png", icc_profile=red_and_green_swapped())
    assert np.abs(pixels(path) - expected).max() <= 2


@pytest.mark.parametrize(
    "profile", [b"no profile", red_and_green_swapped()[:200], b"\x00" * 500], ids=len
)
def test_a_broken_profile_is_told_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, profile: bytes
) -> None:
    path = saved(Image.fromarray(UPRIGHT), tmp_path / "a.png", icc_profile=profile)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(pixels(path), UPRIGHT)
    assert str(path) in caplog.text


def test_a_profile_of_another_colour_space_is_ignored(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    path = saved(cmyk, tmp_path / "a.jpg", icc_profile=red_and_green_swapped())
    assert np.abs(pixels(path) - (0, 255, 255)).max() <= 2


def test_an_srgb_profile_changes_nothing(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(photo(), tmp_path / "a.png", icc_profile=srgb)
    assert np.array_equal(pixels(path), np.asarray(photo()))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_truncated_picture_is_named(tmp_path: Path, suffix: str, kept: float) -> None:
    path = saved(photo(), tmp_path / f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError) as raised:
        load(path)
    assert f"{path} is" in str(raised.value)
    assert "copy it again" in str(raised.value) or "export it" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_progressive_jpeg_cut_short_is_named(tmp_path: Path) -> None:
    path = saved(photo(), tmp_path / "a.jpg", progressive=True)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match="cut short"):
        load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.jpg is empty \(0 bytes\)"),
        (b"just some words\n", "is not a picture in a format that is read"),
        (b"\x89PNG\r\n\x1a\n", r"a\.jpg is"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "holds HEIC"),
        (b"\xff\xd8\xff\xe0" + b"\x00" * 50, r"a\.jpg is"),
    ],
)
def test_what_only_looks_like_a_picture_is_explained(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (load, probe):
        with pytest.raises(DataError, match=message):
            read(path)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"a\.png cannot be opened"):
        load(path)


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    png = saved(Image.fromarray(UPRIGHT), tmp_path / "a.png")
    assert np.array_equal(pixels(png.rename(tmp_path / "b.jpg")), UPRIGHT)


def png_file(
    path: Path, *, width: int, height: int, depth: int = 8, colour_type: int = 0, raw: bytes = b""
) -> Path:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_a_picture_beyond_the_limit_is_refused_with_the_limit(tmp_path: Path) -> None:
    path = png_file(tmp_path / "a.png", width=20_000, height=20_000)
    for read in (load, probe):
        with pytest.raises(DataError, match="more than 178 megapixels: save a smaller copy"):
            read(path)


def test_a_large_picture_below_the_limit_makes_no_noise(tmp_path: Path) -> None:
    path = png_file(tmp_path / "a.png", width=10_000, height=12_000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert probe(path) == (12_000, 10_000)
    assert not caught


def test_a_48_megapixel_photo_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    photo((60, 80)).resize((8000, 6000), Image.Resampling.NEAREST).save(path, exif=exif)
    assert probe(path) == (8000, 6000)
    image = load(path)
    assert image.size == (6000, 8000)
    made = frame((8000, 6000), target=(64, 64), center_crop=True)
    assert render(image, made).shape == (3, 64, 64)


def test_one_pixel_fills_the_square(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (1, 1), (255, 0, 51)), tmp_path / "a.png")
    result = render(load(path), frame(probe(path), target=(32, 32), center_crop=True))
    assert result.shape == (3, 32, 32)
    assert np.allclose(result.mean(axis=(1, 2)), [1, -1, 51 / 127.5 - 1], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1), (8, 60_000)])
def test_a_panorama_costs_no_more_than_its_crop(size: tuple[int, int]) -> None:
    """Resized as a whole the first would take 157 GB."""
    image = Image.effect_noise(size[::-1], 60).convert("RGB")
    made = frame(size, target=(512, 512), center_crop=False, flip=True, draw=(0.3, 0.3))
    result = render(image, made)
    assert result.shape == (3, 512, 512)
    assert np.abs(result).max() <= 1


def cropped_after_resizing(
    image: Image.Image, corner: tuple[int, int], resized: tuple[int, int], flip: bool, method: int
) -> NDArray[np.float32]:
    """The long way: resize everything, flip, crop."""
    whole = image.resize(resized[::-1], method)
    if flip:
        whole = whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    top, left = corner
    side = min(resized)
    part = np.asarray(whole.crop((left, top, left + side, top + side)), dtype=np.float32)
    return part.transpose(2, 0, 1) / 127.5 - 1


@pytest.mark.parametrize("interpolation", sorted(set(INTERPOLATIONS)))
@pytest.mark.parametrize("size", [(301, 457), (640, 427), (100, 171), (64, 64)])
@pytest.mark.parametrize("flip", [False, True])
def test_rendering_equals_resize_flip_crop(
    size: tuple[int, int], interpolation: str, flip: bool
) -> None:
    image = photo(size)
    made = frame(size, target=(128, 128), center_crop=False, flip=flip, draw=(0.37, 0.61))
    result = render(image, made, interpolation=interpolation)
    expected = cropped_after_resizing(
        image, (made.top, made.left), made.resized, flip, INTERPOLATIONS[interpolation]
    )
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    level = np.abs(result - expected) * 127.5
    if interpolation in ("box", "nearest", "nearest_exact"):
        assert (level > 1.01).mean() < 0.01
    else:
        assert level.max() <= 1.01
        assert level.mean() < 0.01


def test_black_is_minus_one_and_white_is_one() -> None:
    made = frame((8, 8), target=(8, 8), center_crop=True)
    assert render(Image.new("RGB", (8, 8), "black"), made).min() == -1
    assert render(Image.new("RGB", (8, 8), "white"), made).max() == 1


def photographs() -> list[Path]:
    """Photographs that scikit-image ships."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        return []
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "retina.jpg")
    return [Path(spec.origin).parent / "data" / name for name in names]


@pytest.mark.skipif(not photographs(), reason="scikit-image, which ships photographs, is missing")
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("path", photographs(), ids=lambda path: path.name)
def test_photographs_of_all_sizes_and_orientations(
    tmp_path: Path, path: Path, orientation: int
) -> None:
    with Image.open(path) as opened:
        upright = np.asarray(opened.convert("RGB"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = tmp_path / "phone.jpg"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.save(turned, exif=exif, quality=95)
    size = probe(turned)
    assert size == upright.shape[:2]
    image = load(turned)
    assert np.abs(np.asarray(image).astype(int) - upright).mean() < 4
    for resolution in (64, 256, 1000):  # the last one enlarges most of them
        made = frame(size, target=(resolution, resolution), center_crop=True)
        result = render(image, made)
        assert result.shape == (3, resolution, resolution)
        assert -1 <= result.min() < result.max() <= 1
        reference = render(Image.fromarray(upright), made)
        assert np.abs(result - reference).mean() < 0.04


def test_decoding_is_the_same_from_bytes_that_were_copied(tmp_path: Path) -> None:
    """A damaged copy that Pillow can still decode would show here, not a moved one."""
    buffer = io.BytesIO()
    photo().save(buffer, "JPEG")
    one, two = tmp_path / "one.jpg", tmp_path / "elsewhere.png"
    for path in (one, two):
        path.write_bytes(buffer.getvalue())
    assert np.array_equal(pixels(one), pixels(two))
