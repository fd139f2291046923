"""Colours and gradients are those of scikit-image and scipy, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.color import rgb2lab

from unsam_mm.pseudo_masks.gradients import gradient_magnitude, lab_planes


def magnitude_by_scipy(planes: np.ndarray, sigma_px: float) -> np.ndarray:
    squares = np.zeros(planes.shape[1:], np.float32)
    for plane in planes:
        for order in ((0, 1), (1, 0)):
            squares += ndimage.gaussian_filter(plane, sigma_px, order=order) ** 2
    return np.sqrt(squares)


def test_lab_is_that_of_scikit_image(coffee):
    assert (lab_planes(coffee) == rgb2lab(coffee).astype(np.float32).transpose(2, 0, 1)).all()


@pytest.mark.parametrize('sigma_px', [1.0, 2.0, 4.0])
def test_gradients_are_those_of_scipy(coffee, sigma_px):
    planes = lab_planes(coffee)
    np.testing.assert_array_max_ulp(gradient_magnitude(planes, sigma_px), magnitude_by_scipy(planes, sigma_px), 1)


@pytest.mark.parametrize('size_hw', [(1, 9), (9, 1), (3, 5)])
def test_images_smaller_than_the_filter_are_mirrored_as_often_as_needed(coffee, size_hw):
    planes = lab_planes(np.ascontiguousarray(coffee[100 : 100 + size_hw[0], 200 : 200 + size_hw[1]]))
    np.testing.assert_array_max_ulp(gradient_magnitude(planes, 4.0), magnitude_by_scipy(planes, 4.0), 1)
