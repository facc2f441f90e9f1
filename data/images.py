"""Picture files to pixels: decode, turn upright, lay on white, resize and crop.

Whatever the file holds (palette, alpha, CMYK, 16 bits, a colour profile, several frames), `load`
gives the first frame as 8-bit sRGB. Sizes are (height, width) of the upright picture, unlike
Pillow's. Alpha is not just dropped: the colours under transparent pixels are arbitrary and would
be learned.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError
from PIL.Image import Resampling, Transpose

from .errors import DataError
from .framing import Frame, Size

# Changes whenever the same file would give other pixels; part of every latents recipe.
DECODER = 1
MAX_PIXELS = 178_956_970  # Pillow's own hard limit; decoded, that is half a gigabyte

# torchvision's names, which the known script's flag takes.
INTERPOLATIONS = {
    "lanczos": Resampling.LANCZOS,
    "bicubic": Resampling.BICUBIC,
    "bilinear": Resampling.BILINEAR,
    "hamming": Resampling.HAMMING,
    "box": Resampling.BOX,
    "nearest": Resampling.NEAREST,
    "nearest_exact": Resampling.NEAREST,
}

# EXIF 2.32, table 6: what brings a picture stored with orientation 2 to 8 upright.
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
# What Pillow raises of it, and what a number does that is none.
_UNREADABLE_EXIF = (
    OSError, SyntaxError, ArithmeticError, ValueError, TypeError, LookupError, EOFError
)  # fmt: skip

_EXPORT = "export it as JPEG or PNG"
_log = logging.getLogger(__name__)


def probe(path: Path) -> Size:
    """The upright size, from the header alone: says nothing about damage further down."""
    with _opened(path) as picture:
        height, width = picture.height, picture.width
        return (width, height) if _orientation(picture, path) in _SIDEWAYS else (height, width)


def load(path: Path) -> Image.Image:
    """Decode a picture to upright 8-bit RGB in sRGB."""
    with _opened(path) as picture:
        picture.load()
        turn = _UPRIGHT.get(_orientation(picture, path))
        colour, alpha = _parts(picture, path)
        colour = _to_srgb(colour, picture.info.get("icc_profile"), path)
        if alpha is not None:
            white = Image.new("RGB", colour.size, "white")
            white.paste(colour, mask=alpha)
            colour = white
        return colour if turn is None else colour.transpose(turn)


def render(
    image: Image.Image, frame: Frame, *, interpolation: str = "lanczos"
) -> NDArray[np.float32]:
    """The framed part of an upright picture, in [-1, 1].  -> (3, H, W)

    Only the part that is kept is resized, so a panorama costs no more than a square. Pillow still
    reads the pixels around the box, so the result is that of resizing all and then cropping, up to
    the single precision in which it takes the box's corners: one level of 255 in few pixels, and
    with nearest and box, whose weights jump, now and then the pixel next door.
    """
    assert (image.height, image.width) == frame.original_size, "the frame is another picture's"
    height, width = frame.size
    part = image.resize((width, height), INTERPOLATIONS[interpolation], box=frame.source_box)
    if frame.flip:
        part = part.transpose(Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(part, dtype=np.float32).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    return np.ascontiguousarray(pixels / np.float32(127.5) - np.float32(1))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong while it is open is told with its name and a remedy."""
    # Ours is a limit with an error; Pillow's warning at half of it is noise. Not `catch_warnings`:
    # that swaps the filters of all threads.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    try:
        # Given a path, Pillow maps some files into memory, and then (13.0) takes the rows of a TIFF
        # that is stored sideways for upright ones. An open file is read.
        with path.open("rb") as file, Image.open(file) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield picture
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as err:
        raise DataError(
            f"{path} has more than {MAX_PIXELS // 10**6} megapixels: save a smaller copy of it"
        ) from err
    except UnidentifiedImageError as err:
        raise DataError(_not_a_picture(path)) from err
    except (FileNotFoundError, IsADirectoryError, PermissionError) as err:
        raise DataError(f"the picture {path} cannot be opened: {err.strerror}") from err
    # Pillow's decoders raise what they stumble over: OSError, SyntaxError, struct.error, ...
    except Exception as err:
        raise DataError(
            f"{path} is damaged or cut short ({err}): copy it again from its source, or remove it"
        ) from err


def _not_a_picture(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return f"{path} is empty (0 bytes): copy it again from its source, or remove it"
    if head[4:8] == b"ftyp":
        return f"{path} holds HEIC, AVIF or video data, which is not read: {_EXPORT}"
    return (
        f"{path} is not a picture in a format that is read (it starts with {head[:12]!r}): "
        f"{_EXPORT}, or remove it"
    )


def _orientation(picture: Image.Image, path: Path) -> int:
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns these while it decodes, and tells the upright size before
    # Of a PNG, Pillow decodes every pixel in search of EXIF data; a look at the chunks is enough.
    is_png = isinstance(picture, PngImagePlugin.PngImageFile)
    if is_png and _says_more_after_pixels(path):
        picture.load()
    try:
        exif = Image.Image.getexif(picture) if is_png else picture.getexif()
        return int(exif.get(ExifTags.Base.Orientation, 1))
    except _UNREADABLE_EXIF as err:
        _log.warning("%s: EXIF data is damaged (%s), taken as upright", path, err)
        return 1


def _says_more_after_pixels(png: Path) -> bool:
    """Whether a PNG has text or EXIF chunks behind its pixels, where some tools put them."""
    pixels_seen = False
    with png.open("rb") as file:
        file.seek(8)  # signature
        while len(head := file.read(8)) == 8:  # length and type, then the body and its checksum
            kind = head[4:]
            pixels_seen |= kind == b"IDAT"
            if pixels_seen and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    return False


def _parts(picture: Image.Image, path: Path) -> tuple[Image.Image, Image.Image | None]:
    """Split into 8-bit colour (L, RGB or CMYK) and alpha, if there is any."""
    if picture.mode.startswith("I"):
        return _from_16_bits(picture, path)
    if picture.mode == "F":
        raise DataError(f"{path} holds floating-point pixels, which have no fixed white: {_EXPORT}")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        whole = picture.convert("RGBA")
        return whole.convert("RGB"), whole.getchannel("A")
    return (picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("RGB")), None


def _from_16_bits(picture: Image.Image, path: Path) -> tuple[Image.Image, Image.Image | None]:
    """Scale 16-bit grey to 8 bits (Pillow's own conversion clips: nearly all would be white)."""
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{path} holds grey values beyond 16 bits: {_EXPORT}")
    grey = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    transparent = picture.info.get("transparency")
    if transparent is None:
        return grey, None
    return grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))


def _to_srgb(colour: Image.Image, icc_profile: bytes | None, path: Path) -> Image.Image:
    """Through the embedded profile, if there is one and it is sound; phones save in Display P3."""
    if icc_profile:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
            if "sRGB" not in ImageCms.getProfileDescription(profile):
                return _through(profile, colour)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as err:
            _log.warning("%s: the colour profile cannot be used (%s), taken as sRGB", path, err)
    return colour.convert("RGB")


def _through(profile: ImageCms.ImageCmsProfile, colour: Image.Image) -> Image.Image:
    space = profile.profile.xcolor_space.strip()
    mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space)
    if mode is None or (mode == "CMYK") != (colour.mode == "CMYK"):
        raise ValueError(f"it is for {space}, the picture is {colour.mode}")
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(colour.convert(mode), profile, srgb, outputMode="RGB")
    assert converted is not None, "None only where Pillow is told to convert in place"
    return converted
