"""Random changes of a picture's colours: brightness, contrast, saturation and hue, in random order."""

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Generator, Tensor

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def jitter(image: Tensor, strengths: tuple[float, float, float, float], generator: Generator) -> Tensor:
    """Draw and apply the four changes.

    The first three strengths s scale by a factor drawn uniformly from ``1 - s`` to ``1 + s``; the last one turns the
    hue by up to that share of the circle, either way. The picture is rounded to 8 bits, as its file was; a grey one has
    neither saturation nor hue.

    Args:
        image: ``[C, X, Y, 1]`` float32 in [0, 1], of one or three colours.
        strengths: of brightness, contrast, saturation and hue.
        generator: source of all random numbers.

    Raises:
        ValueError: not the shape of a picture.
    """
    if image.ndim != 4 or image.shape[0] not in (1, 3) or image.shape[3] != 1:
        form = "[1, X, Y, 1] or [3, X, Y, 1]"
        raise ValueError(f"augment.jitter is for pictures: the image must have shape {form}; got {tuple(image.shape)}")
    pixels = (image[..., 0].movedim(0, -1) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    is_grey = pixels.shape[2] == 1
    picture = Image.fromarray(pixels[..., 0] if is_grey else pixels)
    for change in torch.randperm(4, generator=generator).tolist():
        amount = strengths[change] * (2 * torch.rand((), generator=generator).item() - 1)
        if change < len(ENHANCERS):
            picture = ENHANCERS[change](picture).enhance(1 + amount)
        elif amount and not is_grey:  # 8 bits of hue and saturation cost some steps of colour
            picture = turn_hue(picture, amount)
    changed = np.asarray(picture, np.float32).reshape(pixels.shape) / 255
    return torch.from_numpy(changed).movedim(-1, 0)[..., None].contiguous()


def turn_hue(picture: Image.Image, share: float) -> Image.Image:
    """The RGB picture with its hue turned by ``share`` of the circle, to 1/256 of it."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = ((np.asarray(hue, np.int16) + round(share * 256)) % 256).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
