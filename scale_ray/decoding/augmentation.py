"""How the frames of an augmented clip look: colour jitter, grey and blur, alike in all of them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from scale_ray.clips import Appearance


def apply_augmentation(
    cut: np.ndarray, frame: np.ndarray, appearance: Appearance, px_of_frame: tuple[float, float]
) -> np.ndarray:
    """The cut-out of one frame with the clip's appearance.

    Parameters
    ----------
    cut
        uint8 (height, width, 3), the box resized.
    frame
        uint8 (h, w, 3), the whole frame at any size: contrast changes about its mean, as if the frame had
        been changed before the crop (method, mode `augmented`).
    px_of_frame
        Pixels of the cut-out, down and across, that are one pixel of the shown frame: the unit of the blur.

    Differs from a change before the crop in the blur alone, which sees the nearest pixel of the box where
    the frame's own lies outside.
    """
    image, whole = Image.fromarray(np.ascontiguousarray(cut)), Image.fromarray(np.ascontiguousarray(frame))
    for name, amount in appearance.jitter:
        if name == "contrast":
            # The mean of the frame as it is by now.
            level = round(float(np.asarray(whole.convert("L")).mean()))
            image, whole = (Image.blend(Image.new("RGB", i.size, (level,) * 3), i, amount) for i in (image, whole))
        else:
            image, whole = (_jittered(i, name, amount) for i in (image, whole))
    if appearance.grey:
        image = image.convert("L").convert("RGB")
    if appearance.blur_px:
        down, across = px_of_frame
        image = image.filter(ImageFilter.GaussianBlur((appearance.blur_px * across, appearance.blur_px * down)))
    return np.asarray(image)


def _jittered(image: Image.Image, name: str, amount: float) -> Image.Image:
    if name == "brightness":
        return ImageEnhance.Brightness(image).enhance(amount)
    if name == "saturation":
        return ImageEnhance.Color(image).enhance(amount)
    assert name == "hue", name
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(amount * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
