"""Images as the package wants them, upright RGB uint8, whatever was given; and masks as it stores them."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from pycocotools import mask as coco_mask


def load_image(image) -> np.ndarray:
    """A path, a PIL image or an array to (H, W, 3) uint8 RGB, EXIF rotation applied, transparency on white.

    Arrays: (H, W) or (H, W, 1) greyscale, (H, W, 3) RGB, (H, W, 4) RGBA, uint8. Raises FileNotFoundError, or
    ValueError for a file that is no image and for arrays of other shapes or types.
    """
    if isinstance(image, (str, Path)):
        return _read(Path(image))
    if isinstance(image, Image.Image):
        return np.asarray(_upright_rgb(image))
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise ValueError(f"the image array has type {array.dtype}; expected uint8 with values 0..255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
        if 0 in array.shape:
            raise ValueError(f"the image array has shape {array.shape}; it holds no pixel")
        return np.asarray(_upright_rgb(Image.fromarray(array)))
    raise ValueError(f"the image array has shape {array.shape}; expected (H, W), (H, W, 3) or (H, W, 4)")


def _read(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"no image at {path}; give the path of a PNG, JPEG, WebP, BMP, GIF or TIFF file")
    try:
        with Image.open(path) as image:
            return np.asarray(_upright_rgb(image))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); the file may be damaged") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} has too many pixels ({error}); make it smaller first") from error


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
