"""The assistant: ask a trained GLaMM about an image, get words and the masks that belong to them."""

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from glamm_mini.checkpoints.folder import load_model
from glamm_mini.images import encode_mask, load_image
from glamm_mini.model.glamm import GlammForConditionalGeneration, ImageFeatures
from glamm_mini.processor import GlammProcessor
from glamm_mini.questions import Request, box_array, prepare
from glamm_mini.text.grounded import parse_grounded

DESCRIBE = "Describe the image with masks."
MAX_NEW_TOKENS = 256


@dataclass
class GroundedPhrase:
    """text and span index the caption ("" and None for a [SEG] without phrase). mask: (H, W) bool. box: (x0, y0, x1,
    y1) pixels around the mask, None if it is empty. score: mean probability inside the mask, 0 if it is empty."""

    text: str
    span: tuple[int, int] | None
    mask: np.ndarray
    box: tuple[int, int, int, int] | None
    score: float


@dataclass
class GroundedAnswer:
    """What GLaMM answered. text: as written, tags included. caption: tags removed. phrases: one per mask.
    notes: what the reader should know. image: (H, W, 3) uint8 that was asked about. question: as asked.
    boxes: (N, 4) pixels that the question referred to."""

    text: str
    caption: str
    phrases: list[GroundedPhrase]
    notes: list[str] = field(default_factory=list)
    image: np.ndarray | None = None
    question: str = ""
    boxes: np.ndarray | None = None

    def to_dict(self, image_id=None) -> dict:
        """The official prediction record: image_id, caption, phrases, and one compressed RLE a phrase."""
        return {
            "image_id": image_id,
            "caption": self.caption,
            "phrases": [p.text for p in self.phrases],
            "pred_masks": [encode_mask(p.mask) for p in self.phrases],
            "scores": [round(p.score, 4) for p in self.phrases],
        }

    def picture(self):
        """Picture and sentence in one PIL image."""
        from glamm_mini.visuals.answer_png import answer_png

        return answer_png(self)

    def save(self, path: str | Path) -> Path:
        """Write picture and sentence as one image file; the ending of `path` decides the format."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.picture().save(path)
        return path

    def show(self) -> None:
        """Display the answer in a notebook."""
        from IPython.display import display

        display(self)

    def _repr_html_(self) -> str:
        from glamm_mini.visuals.answer_html import answer_html

        return answer_html(self)

    def _repr_png_(self) -> bytes:
        from io import BytesIO

        buffer = BytesIO()
        self.picture().save(buffer, "PNG")
        return buffer.getvalue()


class Assistant:
    """A model with its processor, ready to be asked. Made by `glamm_mini.load`."""

    def __init__(self, model: GlammForConditionalGeneration, processor: GlammProcessor):
        self.model = model.eval()
        self.processor = processor
        self._remembered: tuple[bytes, ImageFeatures] | None = None

    @property
    def config(self):
        """The model's configuration."""
        return self.model.config

    def ask(self, image, text: str, boxes=None, normalised: bool = False, history=None) -> GroundedAnswer:
        """Ask anything. `text` refers to box k by its k-th `<bbox>`; without any, one per box is appended."""
        array = load_image(image)
        boxes = box_array(boxes)
        if normalised and boxes is not None:
            h, w = array.shape[:2]
            boxes = boxes * np.array([w, h, w, h], np.float32)
        return self.answer_batch([Request(array, text, boxes, history)])[0]

    def describe(self, image) -> GroundedAnswer:
        """A grounded description of the whole picture."""
        return self.ask(image, DESCRIBE)

    def answer_batch(self, requests: list[Request]) -> list[GroundedAnswer]:
        """Answer several requests at once; an image that several requests share (the same object) is encoded once."""
        if not requests:
            return []
        pictures: dict[int, np.ndarray] = {}
        for request in requests:
            if id(request.image) not in pictures:
                pictures[id(request.image)] = load_image(request.image)
        keys = list(pictures)
        prepared = [prepare(r, pictures[id(r.image)].shape[:2], self.processor) for r in requests]
        batch = self.processor.prompts([p.turns for p in prepared])
        device = self.model.device
        boxes = [
            None if p.boxes is None else self.processor.normalise_boxes(p.boxes, pictures[id(r.image)].shape[:2])
            for r, p in zip(requests, prepared, strict=True)
        ]
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                image_index=torch.tensor([keys.index(id(r.image)) for r in requests]),
                image_features=self._features(list(pictures.values())),
                boxes=[None if b is None else b.to(device) for b in boxes],
                max_new_tokens=MAX_NEW_TOKENS,
            )
        return [
            self._answer(r, p, ids, low_res, pictures[id(r.image)])
            for r, p, ids, low_res in zip(requests, prepared, out.sequences, out.low_res, strict=True)
        ]

    def _features(self, pictures: list[np.ndarray]) -> ImageFeatures:
        """Features of the pictures; those of the last call are kept, so that further turns do not encode again."""
        key = sha256(b"".join(str(p.shape).encode() + p.tobytes() for p in pictures)).digest()
        if self._remembered is None or self._remembered[0] != key:
            images = self.processor.images(pictures)
            own = {"device": self.model.device, "dtype": self.model.dtype}
            features = self.model.encode_images(images["global_images"].to(**own), images["grounding_images"].to(**own))
            self._remembered = key, features
        return self._remembered[1]

    def teacher_force(self, image, conversation: list[tuple[str, str]]) -> list[np.ndarray]:
        """Masks (H, W) for every [SEG] of given answers, as the official referring segmentation is scored."""
        picture = load_image(image)
        ids = torch.tensor([self.processor.encode(conversation)[0]], device=self.model.device)
        with torch.inference_mode():
            out = self.model(ids, image_features=self._features([picture]), return_logits=False)
        masks, _ = self.processor.post_process_masks(out.low_res.cpu(), picture.shape[:2])
        return [mask.numpy() for mask in masks]

    def _answer(self, request, prepared, ids, low_res, image) -> GroundedAnswer:
        text = self.processor.decode(ids.tolist())
        parsed = parse_grounded(text)
        notes = prepared.notes + parsed.notes
        # A row that ended is as long as the longest of its batch: it holds the end, and padding behind it.
        if len(ids) >= MAX_NEW_TOKENS and self.processor.tokenizer.eos_token_id not in ids.tolist():
            notes.append(f"the answer was cut after {MAX_NEW_TOKENS} tokens")
        masks, logits = self.processor.post_process_masks(low_res.cpu(), image.shape[:2])
        phrases = [
            GroundedPhrase(span.text, span.span, mask.numpy(), _box(mask.numpy()), _score(mask, logit))
            for span, mask, logit in zip(parsed.phrases, masks, logits, strict=False)
        ]
        return GroundedAnswer(text, parsed.caption, phrases, notes, image, request.question, prepared.boxes)


def _box(mask: np.ndarray):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _score(mask: torch.Tensor, logits: torch.Tensor) -> float:
    return float(logits.sigmoid()[mask].mean()) if bool(mask.any()) else 0.0


def load(name: str | Path = "tiny", device: str | None = None, dtype: str | None = None) -> Assistant:
    """A bundled model ("tiny") or a folder written by `save_pretrained`, ready to be asked.

    device: "cpu", "cuda" ...; default: a GPU if there is one. dtype: "float32", "bfloat16" ...; default float32.
    Raises FileNotFoundError or ValueError that names what is missing or damaged.
    """
    model, processor = load_model(name, dtype=dtype)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Assistant(model.to(device), processor)
