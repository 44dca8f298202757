"""Images as the package wants them, upright RGB uint8, whatever was given; and masks as it stores them."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pycocotools import mask as coco_mask

EXPECTED = "give a path, a PIL image, or an array of shape (H, W, 3) and type uint8"


def load_image(image) -> np.ndarray:
    """A path, a PIL image or an array to (H, W, 3) uint8 RGB, EXIF rotation applied, transparency on white.

    Arrays: (H, W) or (H, W, 1) grayscale, (H, W, 3) RGB, (H, W, 4) RGBA, uint8. The first frame of an animation.
    Raises FileNotFoundError for a path that is no file; ValueError for no image at all, for a file that is no image
    or damaged, and for arrays of other shapes or types.
    """
    if image is None or (isinstance(image, str) and not image.strip()):
        raise ValueError(f"no image was given, but {image!r}; {EXPECTED}")
    if isinstance(image, (str, Path)):
        return _read(Path(image))
    if isinstance(image, Image.Image):
        return _pixels(image, "the PIL image")
    array = np.asarray(image)
    if array.size == 0:
        raise ValueError(f"the image array has shape {array.shape}; it holds no pixel; {EXPECTED}")
    if array.dtype != np.uint8:
        raise ValueError(
            f"the image array has type {array.dtype}; expected uint8 with values 0..255: scale it to that range first"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
        return np.asarray(_upright_rgb(Image.fromarray(array)))
    raise ValueError(f"the image array has shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")


def _read(path: Path) -> np.ndarray:
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder and no image; give the path of one of its files")
    if not path.is_file():
        hint = "download it first, then " if "://" in str(path) or str(path).startswith(("http:", "https:")) else ""
        raise FileNotFoundError(f"no image at {path}; {hint}give the path of a PNG, JPEG, WebP, BMP, GIF or TIFF file")
    try:
        with Image.open(path) as image:
            return _pixels(image, str(path))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has too many pixels ({error}); make it smaller first") from error
    except (UnidentifiedImageError, OSError, SyntaxError, struct.error) as error:
        raise _unreadable(str(path), error) from error


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image, whose file may be read only now, to (H, W, 3) uint8."""
    if 0 in image.size:
        raise ValueError(f"{name} is {image.size[0]} x {image.size[1]} pixels large; it holds no pixel")
    try:
        return np.asarray(_upright_rgb(image))
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} cannot be read as an image ({error}); the file may be damaged")


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion would clip at 255. Sixteen bits have a known range, the wider types have none.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        top = 65535 if image.mode.startswith("I;16") else max(values.max(), 1)
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")


def encode_mask(mask: np.ndarray) -> dict:
    """One (H, W) bool mask as a COCO run-length record `{"size": [H, W], "counts": str}`."""
    record = coco_mask.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
    return {"size": [int(side) for side in record["size"]], "counts": record["counts"].decode("ascii")}
