from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from leanfleet.data.pixels import decode, stack
from leanfleet.errors import DataError


def noise(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def picture(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Image.Image:
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=30)
def test_pil_images_and_tensors_give_the_same_pixels(
    count: int, height: int, width: int, channels: int
) -> None:
    arrays = [noise(height, width, channels, seed) for seed in range(count)]
    expected = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    tensors = list(expected)
    for pictures in (map(picture, arrays), tensors, [tensor / 255 for tensor in tensors]):
        assert torch.equal(stack(pictures, count, "x"), expected)


@given(st.sampled_from(["PNG", "WEBP", "BMP"]), st.sampled_from([None, ("PNG",), ("WEBP",), ("JPEG",)]))
@settings(deadline=None, max_examples=12)
def test_a_wrong_guess_of_the_format_changes_nothing(kind: str, likely: tuple[str, ...] | None) -> None:
    pixels = noise(7, 5, 3)
    image = decode(encoded(picture(pixels), kind, **({"lossless": True} if kind == "WEBP" else {})), likely)
    assert image.format == kind
    assert np.array_equal(np.asarray(image), pixels)


def test_an_image_on_its_side_is_turned_upright() -> None:
    side = picture(noise(4, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(side, "JPEG", exif=exif), None).size == (4, 6)


def test_the_result_lies_in_memory_pixel_by_pixel() -> None:
    stacked = stack(map(picture, [noise(4, 6, 3), noise(4, 6, 3)]), 2, "x")
    assert stacked.is_contiguous(memory_format=torch.channels_last)


def test_grey_images_without_a_channel_axis() -> None:
    tensor = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
    assert torch.equal(stack([tensor], 1, "x"), tensor[None, None])


def test_grey_images_among_coloured_ones_are_spread() -> None:
    stacked = stack(map(picture, [noise(4, 6, 3), noise(4, 6, 1)]), 2, "x")
    assert torch.equal(stacked[1], torch.from_numpy(noise(4, 6, 1)).permute(2, 0, 1).expand(3, 4, 6))


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)])
def test_other_modes_become_grey_or_rgb(mode: str, channels: int) -> None:
    assert stack([picture(noise(4, 6, 3)).convert(mode)], 1, "x").shape == (1, channels, 4, 6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (picture(noise(4, 5, 3)), "row 1 is 4x5 with 3 channels, the one in row 0 4x6 with 1 channel"),
        (picture(noise(4, 6, 3)), "row 1 is 4x6 with 3 channels, the one in row 0 4x6 with 1 channel"),
        (Image.new("I;16", (6, 4)), "row 1 .* more than 8 bits"),
        (Image.new("F", (6, 4)), "row 1 .* more than 8 bits"),
        (torch.full((1, 4, 6), 1.5), r"row 1 .* outside \[0, 1\]; leave normalising to leanfleet"),
        (torch.full((1, 4, 6), torch.nan), r"row 1 .* outside \[0, 1\]"),
        (torch.zeros(1, 4, 6, dtype=torch.int64), "row 1 .* torch.int64, not uint8"),
        (torch.zeros(1, 1, 4, 6), r"row 1 .* not \[C, H, W\]"),
        ("cat.png", "row 1 .* not str"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(bad: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"here: the image in {message}") as error:
        stack([picture(noise(4, 6, 1)), bad], 2, "here")
    assert "\n" not in str(error.value)


def test_a_truncated_image_is_named() -> None:
    whole = encoded(picture(noise(32, 32, 3)))
    with pytest.raises(DataError, match="here: the image in row 0 cannot be used"):
        stack([Image.open(io.BytesIO(whole[: len(whole) // 2]))], 1, "here")


def test_no_image_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="here: there are no rows"):
        stack([], 0, "here")
