"""Images as the package wants them, upright RGB uint8, whatever was given; and masks as it stores them."""

import struct
from contextlib import nullcontext
from io import BytesIO, IOBase, TextIOBase
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pycocotools import mask as coco_mask

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""What files are read as. Pillow has fifty readers more, some of which start other programs (PostScript)."""

EXPECTED = "give a path, a PIL image, or an array of shape (H, W, 3) and type uint8"


def load_image(image: Any) -> np.ndarray:
    """A path, a PIL image, an array, or a file's bytes to (H, W, 3) uint8 RGB, read-only.

    EXIF rotation is applied, transparency lies on white, an animation gives its first frame. Arrays, and tensors of
    torch: (H, W) or (H, W, 1) grayscale, (H, W, 3) RGB, (H, W, 4) RGBA, uint8. Files are PNG, JPEG, WebP, BMP, GIF or
    TIFF, whatever their name. What this function has returned is handed back as it is.
    Raises FileNotFoundError for a path that is not a file; ValueError for no image at all, for a file that is not an
    image or damaged, and for arrays of other shapes or types.
    """
    if image is None or (isinstance(image, str) and not image.strip()):
        raise ValueError(f"no image was given, but {image!r}; {EXPECTED}")
    if isinstance(image, str | PathLike):
        return _read_path(Path(image))
    if isinstance(image, Image.Image):
        return _pixels(image, "the PIL image")
    if isinstance(image, bytes | bytearray):
        return _pixels(BytesIO(image), "the given data")
    if isinstance(image, IOBase) and not isinstance(image, TextIOBase):
        if image.closed:
            raise ValueError(f"the image is a file that was closed; {EXPECTED}")
        return _pixels(image, "the open file")
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and not (image.is_meta or image.is_sparse):
        image = image.cpu().numpy()
    if not isinstance(image, np.ndarray):
        is_tensor = isinstance(image, torch.Tensor)
        place = "" if not is_tensor else ", sparse" if image.is_sparse else f" on {image.device}"
        kind = f"a tensor of {image.dtype}{place}" if is_tensor else f"a {type(image).__name__}"
        raise ValueError(f"the image is {kind}; {EXPECTED}")
    return _read_array(image)


def _read_array(array: np.ndarray) -> np.ndarray:
    if array.size == 0:
        raise ValueError(f"the image array has shape {array.shape}; it holds no pixel; {EXPECTED}")
    if np.ma.is_masked(array):
        raise ValueError("the image array hides some of its pixels behind a mask; fill them first: array.filled(0)")
    if array.dtype != np.uint8:
        expected = "expected uint8 with values 0..255: scale it to that range first"
        raise ValueError(f"the image array has type {array.dtype}; {expected}")
    if array.ndim == 3 and array.shape[2] == 3:
        # Whoever holds the whole of which this is a part may change it all the same.
        open_to = array.flags.writeable or isinstance(array.base, np.ndarray) and array.base.flags.writeable
        return _frozen(array.copy(order="C")) if open_to or not array.flags.c_contiguous else array
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 4):
        return _frozen(np.asarray(_upright_rgb(Image.fromarray(array))))
    raise ValueError(f"the image array has shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")


def _frozen(array: np.ndarray) -> np.ndarray:
    """Nobody changes it any more: whoever holds it need not copy or read it again."""
    array.flags.writeable = False
    return array


def _read_path(path: Path) -> np.ndarray:
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long for the file system
        raise FileNotFoundError(f"no image at {str(path)[:100]!r} ({error.strerror}); {EXPECTED}") from error
    if is_folder:
        raise FileNotFoundError(f"{path} is a folder, not an image; give the path of one of its files")
    if not is_file:
        hint = "download it first, then " if "://" in str(path) or str(path).startswith(("http:", "https:")) else ""
        raise FileNotFoundError(f"no image at {path}; {hint}give the path of a PNG, JPEG, WebP, BMP, GIF or TIFF file")
    return _pixels(path, str(path))


def _pixels(source: Image.Image | Path | IOBase, name: str) -> np.ndarray:
    """A picture to (H, W, 3) uint8; the file of one that is open already may be read only now."""
    is_open = isinstance(source, Image.Image)
    try:
        with nullcontext(source) if is_open else Image.open(source, formats=FORMATS) as image:
            (w, h), pixels = image.size, None if 0 in image.size else np.asarray(_upright_rgb(image))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels ({error}); make it smaller first") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a PNG, JPEG, WebP, BMP, GIF or TIFF picture, or is damaged") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise ValueError(f"{name} cannot be read as an image ({error}); the file may be damaged") from error
    if pixels is None:
        raise ValueError(f"{name} is {w} x {h} pixels large; it holds no pixel")
    return _frozen(pixels)


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion would clip at 255. Sixteen bits have a known range, the wider types have none.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=-1, posinf=-1, neginf=-1)
        if values.size and values.max() < 0:
            raise ValueError("no pixel is finite and at least 0")
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
