"""The assistant: ask a trained GLaMM about an image, get words and the masks that belong to them."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from glamm_mini.assistant.answer import GroundedAnswer, GroundedPhrase, grounded_phrase
from glamm_mini.assistant.chat import Chat
from glamm_mini.assistant.requests import WORDINGS, Prepared, Request, Wording, expression_words, prepare
from glamm_mini.checkpoints.folder import load_model
from glamm_mini.model.glamm import GlammForConditionalGeneration, ImageFeatures
from glamm_mini.processing.boxes import box_array
from glamm_mini.processing.images import load_image
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.processing.tags import parse_grounded

__all__ = ["Assistant", "Chat", "GroundedAnswer", "GroundedPhrase", "Request", "load"]

MAX_NEW_TOKENS = 256


class Assistant:
    """A model with its processor, ready to be asked. Made by `glamm_mini.load`.

    Every image is a path, a PIL image, or an array (H, W, 3) uint8 RGB. Every box is (x0, y0, x1, y1) in pixels of
    the upright picture, or in fractions 0..1 of its sides with normalised=True. Every call returns a GroundedAnswer;
    FileNotFoundError and ValueError name what is wrong with an image, a text or a box.
    """

    def __init__(self, model: GlammForConditionalGeneration, processor: GlammProcessor):
        self.model = model.eval()
        self.processor = processor
        self._remembered: tuple[bytes, ImageFeatures] | None = None

    @property
    def config(self):
        """The model's configuration."""
        return self.model.config

    @property
    def wording(self) -> Wording:
        """The questions of `describe`, `segment` and the others, as this model's weights have met them."""
        return WORDINGS[self.config.mode]

    # --- questions --------------------------------------------------------------------------------------------------

    def ask(self, image, text: str, boxes=None, normalised: bool = False, history=None) -> GroundedAnswer:
        """Ask anything.

        text: refers to box k by its k-th `<bbox>`; without any, one per box is appended; other tags are plain words.
        boxes: (N, 4), or one box; None for none. Boxes that reach over the picture's edges are cut there.
        history: earlier turns, oldest first: (question, answer text), or (question, answer text, boxes in pixels).
        """
        return self.answer_batch([Request(image, text, boxes, history, normalised)])[0]

    def describe(self, image) -> GroundedAnswer:
        """A grounded description of the whole picture: a mask for each phrase."""
        return _want_masks(self.ask(image, self.wording.describe))

    def segment(self, image, expression: str) -> GroundedAnswer:
        """The mask of what an expression means, such as "the red balloon" or "both boats"."""
        words = expression_words(expression, "the expression").rstrip(".?!")
        return _want_masks(self.ask(image, self.wording.segment.format(x=expression_words(words, "the expression"))))

    def describe_region(self, image, box, normalised: bool = False) -> GroundedAnswer:
        """What one box holds, in words."""
        boxes = box_array(box)
        if boxes is None or len(boxes) != 1:
            raise ValueError(
                f"describe_region takes one box (x0, y0, x1, y1), but {0 if boxes is None else len(boxes)} were given; "
                "ask about several with ask(image, 'Is <bbox> left of <bbox>?', boxes)"
            )
        return self.ask(image, self.wording.describe_region, boxes, normalised)

    def caption(self, image) -> GroundedAnswer:
        """A short caption in words alone."""
        return self.ask(image, self.wording.caption)

    def ground(self, image, sentence: str) -> GroundedAnswer:
        """A given sentence with a mask for each of its phrases. A note tells where the model changed the sentence."""
        words = expression_words(sentence, "the sentence")
        words += "." if words[-1].isalnum() else ""
        answer = _want_masks(self.ask(image, self.wording.ground.format(x=words)))
        if answer.caption.casefold().rstrip(".") != words.casefold().rstrip("."):
            answer.notes.append("the answer is not the sentence that was given, word by word")
        return answer

    def chat(self, image) -> Chat:
        """A conversation about one picture: `chat.say("What do you see?")`, then `chat.say("Where is it?")`."""
        return Chat(self, image)

    # --- answers ----------------------------------------------------------------------------------------------------

    def answer_batch(self, requests: list[Request], features: ImageFeatures | None = None) -> list[GroundedAnswer]:
        """Answer several requests at once; an image that several requests share (the same object) is encoded once.

        features: of the requests' different images in the order of their first use, where they are known already.
        """
        if not requests:
            return []
        pictures: dict[int, np.ndarray] = {}
        for request in requests:
            if id(request.image) not in pictures:
                pictures[id(request.image)] = load_image(request.image)
        keys = list(pictures)
        sizes = [pictures[id(r.image)].shape[:2] for r in requests]
        prepared = [prepare(r, size, self.processor) for r, size in zip(requests, sizes, strict=True)]
        batch = self.processor.prompts([p.turns for p in prepared])
        device = self.model.device
        boxes = [
            None if p.all_boxes is None else self.processor.normalize_boxes(p.all_boxes, size).to(device)
            for p, size in zip(prepared, sizes, strict=True)
        ]
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                image_index=torch.tensor([keys.index(id(r.image)) for r in requests]),
                image_features=self._features(list(pictures.values())) if features is None else features,
                boxes=boxes,
                max_new_tokens=MAX_NEW_TOKENS,
            )
        return [
            self._answer(r, p, ids, low_res, pictures[id(r.image)])
            for r, p, ids, low_res in zip(requests, prepared, out.sequences, out.low_res, strict=True)
        ]

    def encode(self, image) -> ImageFeatures:
        """What both image encoders make of one picture, for `answer_batch`."""
        with torch.inference_mode():
            return self._features([load_image(image)])

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

    def _answer(self, request: Request, prepared: Prepared, ids, low_res, image: np.ndarray) -> GroundedAnswer:
        text = self.processor.decode(ids.tolist())
        parsed = parse_grounded(text)
        notes = prepared.notes + parsed.notes
        # A row that ended is as long as the longest of its batch: it holds the end, and padding behind it.
        if len(ids) >= MAX_NEW_TOKENS and self.processor.tokenizer.eos_token_id not in ids.tolist():
            notes.append(f"the answer was cut after {MAX_NEW_TOKENS} tokens")
        phrases = []
        # One mask at a time: at twenty megapixels, the logits of each take 80 MB.
        for span, own in zip(parsed.phrases, low_res.cpu(), strict=False):
            masks, logits = self.processor.post_process_masks(own[None], image.shape[:2])
            phrases.append(grounded_phrase(span.text, span.span, masks[0], logits[0]))
        return GroundedAnswer(text, parsed.caption, phrases, notes, image, request.question, prepared.boxes)


def _want_masks(answer: GroundedAnswer) -> GroundedAnswer:
    if not any(phrase.mask.any() for phrase in answer.phrases):
        answer.notes.append("the answer points at nothing in the picture")
    return answer


def load(
    name: str | Path = "tiny",
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    **placement,
) -> Assistant:
    """A model ready to be asked: a bundled one ("tiny"), a folder that training wrote, an official checkpoint's folder,
    or a hub id ("owner/name", such as "MBZUAI/GLaMM-GCG").

    device: "cpu", "cuda" ...; default: a GPU if there is one. "auto" uses all GPUs, then the CPU's memory, then the
    disk; with it, `max_memory` (such as {0: "10GB", "cpu": "30GB"}) and `offload_folder` say how much and where.
    dtype: "float32", "bfloat16" ...; default float32; "stored" keeps each weight's own, as official code saves them.
    quantize: "4bit" or "8bit" for the language model's weights (needs the extra `quantize`); default as they are.
    vision_tower: the folder of CLIP, which official checkpoints leave out; default: their own choice, from the hub.
    drop: beginnings of official names to leave out, such as ("model.old_head.",), where a checkpoint has too many.
    Raises FileNotFoundError or ValueError that names what is missing, damaged or foreign.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Assistant(*load_model(name, dtype, device=device, quantize=quantize, **placement))
