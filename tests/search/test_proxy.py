from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from leanfleet.data import DataSet, Split, load
from leanfleet.errors import DataError
from leanfleet.search.proxy import distort, proxy


@pytest.mark.parametrize("channels", [1, 3])
def test_distortion_is_that_of_pil(channels):
    images = torch.randint(0, 256, (4, channels, 12, 10), dtype=torch.uint8)
    for image, found in zip(images, distort(images), strict=True):
        array = image.permute(1, 2, 0).numpy()
        expected = Image.fromarray(array[:, :, 0] if channels == 1 else array)
        expected = ImageEnhance.Contrast(ImageEnhance.Brightness(expected).enhance(0.5)).enhance(0.5)
        if channels == 3:
            expected = ImageEnhance.Color(expected).enhance(0.5)
        there = np.asarray(expected).reshape(12, 10, channels)
        # PIL rounds after every step, and down.
        assert np.abs(there.astype(int) - found.permute(1, 2, 0).numpy().astype(int)).max() <= 2


def test_the_halves_share_no_image_and_test_images_are_never_used():
    n = 100
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 4, 4).clone()
    train = Split(images, torch.arange(n) % 2)
    test = Split(torch.full((10, 1, 4, 4), 255, dtype=torch.uint8), torch.arange(10) % 2)
    made = proxy(DataSet.of("numbers", train, test, ("even", "odd")), 10, seed=0)
    assert (len(made.train), len(made.test)) == (90, 10)
    values = torch.cat([made.train.images, made.test.images])[:, 0, 0, 0]
    assert torch.equal(values.sort().values, distort(images)[:, 0, 0, 0].sort().values)


def test_sets_of_less_than_ten_images_are_refused():
    digits = load("digits")
    few = [replace(digits, train=digits.train.select(torch.arange(count))) for count in (9, 10)]
    with pytest.raises(DataError, match="9 training images; a search needs 10"):
        proxy(few[0], 1000, 0)
    assert len(proxy(few[1], 1000, 0).test) == 2


def test_small_sets_keep_four_fifths_to_train_on():
    digits = load("digits")
    made = proxy(digits, 5000, seed=1)
    assert len(made.test) == len(digits.train) // 5
    assert not torch.equal(made.test.labels, proxy(digits, 5000, seed=2).test.labels)
