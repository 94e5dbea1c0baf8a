"""Applies the appearance of an augmented clip to its frames: colour jitter, grey and blur, the same for every frame."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from scale_ray.clips import Appearance


def apply_augmentation(
    crop: np.ndarray, frame: np.ndarray, appearance: Appearance, scale: tuple[float, float]
) -> np.ndarray:
    """Apply a clip's appearance to the crop of one frame: uint8 (height, width, 3).

    Parameters
    ----------
    crop
        uint8 (height, width, 3), the box of the clip, resized.
    frame
        uint8 (h, w, 3), the whole frame at any size: contrast is changed around its mean, as if the frame had been
        changed before the crop (mode `augmented` of the method).
    scale
        Pixels of the crop per pixel of the shown frame, vertically and horizontally: the unit of the blur.

    Differs from augmentation before the crop only in the blur: outside the box, it uses the nearest pixel of the box
    instead of the frame's own pixel.
    """
    image, whole = Image.fromarray(np.ascontiguousarray(crop)), Image.fromarray(np.ascontiguousarray(frame))
    for name, amount in appearance.jitter:
        if name == "contrast":
            # The mean of the frame after the changes so far.
            level = round(float(np.asarray(whole.convert("L")).mean()))
            image, whole = (Image.blend(Image.new("RGB", i.size, (level,) * 3), i, amount) for i in (image, whole))
        else:
            image, whole = (_jittered(i, name, amount) for i in (image, whole))
    if appearance.grey:
        image = image.convert("L").convert("RGB")
    if appearance.blur_px:
        vertical, horizontal = scale
        image = image.filter(ImageFilter.GaussianBlur((appearance.blur_px * horizontal, appearance.blur_px * vertical)))
    return np.asarray(image)


def _jittered(image: Image.Image, name: str, amount: float) -> Image.Image:
    if name == "brightness":
        return ImageEnhance.Brightness(image).enhance(amount)
    if name == "saturation":
        return ImageEnhance.Color(image).enhance(amount)
    assert name == "hue", name
    hue, saturation, value = image.convert("HSV").split()
    shifted = (np.asarray(hue).astype(np.int16) + round(amount * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")
