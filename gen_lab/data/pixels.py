"""One picture file as grey levels or colours of 8 bits, whatever it is stored as."""

import warnings
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from rl_lab.core.errors import UserError, brief
from rl_lab.core.room import regular

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
FORMATS = ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"]  # whatever the suffix says: others may start programs
Background = Literal["white", "black"]
ORIENTATION = 0x0112  # a tag of EXIF
WHITE_IS_ZERO = 0  # of TIFF's tag 262
WHOLE = {"I;16", "I;16L", "I;16B", "I;16N", "I;12"}  # modes of greys deeper than 8 bits


def pictured(path: Path, size: int | None, grey: bool, background: Background = "white") -> np.ndarray:
    """[C, H, W] uint8: greys of 12 or 16 bits, and floats in [0, 1], rounded to the nearest of 256; what is transparent
    lies on the background; turned as its EXIF says. Raises UserError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with regular(path) as file, Image.open(file, formats=FORMATS) as opened:
                image = ImageOps.exif_transpose(shallow(opened, path, grey, background))
                if size:
                    image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
                pixels = np.array(image)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of the decoders: damaged files raise whatever their bytes led to
        reason = brief(error) or type(error).__name__
        raise UserError(f"{path} is not a picture that can be read ({reason}); repair it or remove it") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def shallow(image: ImageFile.ImageFile, path: Path, grey: bool, background: Background) -> Image.Image:
    """Any opened picture converted to mode L or RGB, and its orientation. Raises UserError."""
    frames = getattr(image, "n_frames", 1)  # of formats that can hold several
    if frames > 1 and image.format != "MPO":
        raise UserError(f"{path} holds {frames} pictures; save each of them as a file of its own")
    if ";16" in (packing := str([tile[3] for tile in image.tile])) and image.mode not in WHOLE:
        flat = Image.fromarray(_laid(_deep(path), background, 65_535))
    elif image.mode in WHOLE:
        flat = Image.fromarray(_greys(image, 12 if ";12" in packing else 16, background))
    elif image.mode == "F":
        flat = Image.fromarray(_shares(image, path))
    elif image.mode == "I":
        raise UserError(f"{path} has whole numbers of 32 bits, of which none is white; save it with 8 or 16 bits")
    elif image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        flat = Image.fromarray(_laid(np.asarray(image.convert("RGBA")), background))
    else:
        flat = image
    flat = flat.convert("L" if grey else "RGB")
    turned = image.getexif().get(ORIENTATION, 1)  # of a TIFF none by now: Pillow has turned it as it was read
    flat.info = {"exif": _exif(turned)} if turned in range(2, 9) else {}
    return flat


def _exif(turned: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    return exif.tobytes()


def _greys(image: Image.Image, bits: int, background: Background) -> np.ndarray:
    """[H, W] uint8 of whole numbers of `bits` bits."""
    values, top = np.asarray(image).astype(int), 2**bits - 1
    clear = values == image.info.get("transparency", -1)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(262) == WHITE_IS_ZERO:
        values = top - values
    rounded = (510 * values + top) // (2 * top)
    return np.where(clear, _level(background), rounded).astype(np.uint8)


def _shares(image: Image.Image, path: Path) -> np.ndarray:
    """[H, W] uint8 of floating-point numbers in [0, 1]."""
    values = np.asarray(image, float)
    if not ((values >= 0) & (values <= 1)).all():  # nan is neither
        raise UserError(
            f"{path} has floating-point numbers from {values.min():.4g} to {values.max():.4g}; 0 is black "
            "and 1 is white: scale it to between them"
        )
    return np.floor(255 * values + 0.5).astype(np.uint8)


def _deep(path: Path) -> np.ndarray:
    """[H, W, 4] uint16: colours of 16 bits (Pillow reads only the upper 8) and alpha."""
    import av

    with regular(path) as file, av.open(file, "r") as container:
        return next(container.decode(video=0)).reformat(format="rgba64le").to_ndarray()


def _laid(rgba: np.ndarray, background: Background, top: int = 255) -> np.ndarray:
    """[H, W, 4], where `top` is white and opaque, over the background: [H, W, 3] uint8."""
    colour, alpha = np.split(rgba.astype(np.int64), [3], axis=2)
    seen = alpha * colour + (top - alpha) * (top * _level(background) // 255)  # of top^2
    return ((510 * seen + top**2) // (2 * top**2)).astype(np.uint8)


def _level(background: Background) -> int:
    black_to_white = get_args(Background)[::-1]
    return 255 * black_to_white.index(background)
