"""From pictures of any kind to one uint8 tensor."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leanfleet.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# Decoding stays in one thread on purpose. Measured on 2 cores: 52 us a CIFAR image (WebP) and 33 us a Fashion-MNIST
# image (PNG) alone, 62 and 37 us with two or four threads: at these sizes handing the interpreter lock to and fro
# costs more than the decoder gives back. 50,000 CIFAR images take 3 to 4 s, which is little beside a run.


def stack(pictures: Iterable[Any], count: int, where: str) -> Tensor:
    """Stack pictures of one size into uint8 `[N, C, H, W]` that lies in memory as `[N, H, W, C]`.

    The first picture decides the size and whether there are one or three channels; grey ones among coloured ones
    are spread to three channels.

    Args:
        pictures: PIL images, or tensors uint8 or float in [0, 1], `[C, H, W]` or `[H, W]`. Palettes become RGB,
            and transparency is dropped.
        count: How many there are.
        where: What to name in an error: the file or the set.

    Raises:
        DataError: If there is none, or one differs in size or in colour from the first, or has no pixels we can use.
    """
    out: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    for row, picture in enumerate(pictures):
        try:
            pixels = _pixels(picture)
        except (ValueError, OSError, SyntaxError) as error:  # the three that PIL raises on damaged bytes
            raise DataError(f"{where}: the image in row {row} cannot be used: {_line(error)}") from error
        if out is None:
            out = np.empty((count, *pixels.shape), np.uint8)
        if pixels.shape[:2] != out.shape[1:3] or pixels.shape[2] not in (1, out.shape[3]):
            raise DataError(
                f"{where}: the image in row {row} is {_size(pixels.shape)}, the one in row 0 {_size(out.shape[1:])}; "
                "bring all images to one size and one number of channels"
            )
        out[row] = pixels
    if out is None:
        raise DataError(f"{where}: there are no rows; at least one image is needed")
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def decode(data: bytes, likely: tuple[str, ...] | None) -> Image:
    """Open an encoded image and turn it upright.

    Args:
        data: The bytes of the image's file.
        likely: Formats (PIL's names) to try before all others. Guessing that of the image before saves a third of
            the time of WebP, which PIL otherwise comes to only after dozens of others.

    Raises:
        OSError, ValueError, SyntaxError: The bytes are damaged; these are the three that PIL raises.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError
    from PIL.ExifTags import Base

    try:
        picture = Image.open(BytesIO(data), formats=likely)
    except UnidentifiedImageError:
        if likely is None:
            raise
        picture = Image.open(BytesIO(data))
    if picture.getexif().get(Base.Orientation, 1) == 1:
        return picture
    upright = ImageOps.exif_transpose(picture)
    upright.format = picture.format
    return upright


def _pixels(picture: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return uint8 `[H, W, C]` of a PIL image or a tensor; ValueError says what is wrong."""
    if isinstance(picture, Tensor):
        return _from_tensor(picture)
    if hasattr(picture, "getbands"):
        return _from_pil(picture)
    raise ValueError(f"a PIL image or a tensor is needed, not {type(picture).__name__}")


def _from_pil(picture: Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    from PIL.Image import getmodebase

    if picture.mode[0] in "IF":  # PIL would clip these at 255 without a word
        raise ValueError(f"its pixels have more than 8 bits (mode {picture.mode}); convert them to 8 bits")
    wanted = "L" if getmodebase(picture.mode) == "L" else "RGB"
    pixels = np.asarray(picture if picture.mode == wanted else picture.convert(wanted))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _from_tensor(picture: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if picture.ndim not in (2, 3):
        raise ValueError(f"its shape is {list(picture.shape)}, not [C, H, W] or [H, W]")
    if picture.is_floating_point():
        # `not (all inside)` rather than `any outside`: NaN is neither
        if not bool(((picture >= 0) & (picture <= 1)).all()):
            raise ValueError("its values are outside [0, 1]; leave normalising to leanfleet")
        picture = (picture * 255).round().to(torch.uint8)
    if picture.dtype != torch.uint8:
        raise ValueError(f"it is {picture.dtype}, not uint8 or float in [0, 1]")
    return (picture.permute(1, 2, 0) if picture.ndim == 3 else picture[:, :, None]).cpu().numpy()


def _size(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
