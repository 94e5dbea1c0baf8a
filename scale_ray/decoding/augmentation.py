"""Applies the appearance of an augmented clip to its frames: colour jitter, grey and blur, the same for every frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from scale_ray.clips import Appearance


def apply_augmentation(
    crops: np.ndarray, frames: Sequence[np.ndarray], appearance: Appearance, scale: tuple[float, float]
) -> np.ndarray:
    """Apply a clip's appearance to the crops of its frames: uint8 (T, height, width, 3).

    Parameters
    ----------
    crops
        uint8 (T, height, width, 3), the box of the clip in each frame, resized.
    frames
        T whole frames, uint8 (h, w, 3) at any size: contrast is changed around the mean of all frames, as if they had
        been changed together before the crop (mode `augmented` of the method).
    scale
        Pixels of the crop per pixel of the shown frame, vertically and horizontally: the unit of the blur.

    Differs from augmentation before the crop only in the blur: outside the box, it uses the nearest pixel of the box
    instead of the frame's own pixel.
    """
    images, wholes = (
        [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in arrays] for arrays in (crops, frames)
    )
    names = [name for name, _ in appearance.jitter]
    for number, (name, amount) in enumerate(appearance.jitter):
        # The mean of the frames after the changes so far.
        level = _mean_grey(wholes) if name == "contrast" else 0
        images = [_jittered(image, name, amount, level) for image in images]
        if "contrast" in names[number + 1 :]:
            wholes = [_jittered(whole, name, amount, level) for whole in wholes]
    if appearance.grey:
        images = [image.convert("L").convert("RGB") for image in images]
    if appearance.blur_px:
        blur = ImageFilter.GaussianBlur(tuple(appearance.blur_px * axis for axis in reversed(scale)))
        images = [image.filter(blur) for image in images]
    return np.stack([np.asarray(image) for image in images])


def _mean_grey(images: Sequence[Image.Image]) -> int:
    """The mean grey level of several images, each with the same weight."""
    return round(float(np.mean([np.asarray(image.convert("L")).mean() for image in images])))


def _jittered(image: Image.Image, name: str, amount: float, level: int) -> Image.Image:
    """The image with one property changed; contrast is changed around the grey `level`."""
    if name == "contrast":
        return Image.blend(Image.new("RGB", image.size, (level,) * 3), image, amount)
    if name == "brightness":
        return ImageEnhance.Brightness(image).enhance(amount)
    if name == "saturation":
        return ImageEnhance.Color(image).enhance(amount)
    assert name == "hue", name
    hue, saturation, value = image.convert("HSV").split()
    shifted = (np.asarray(hue).astype(np.int16) + round(amount * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")
