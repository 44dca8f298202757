"""The assistant: ask a trained GLaMM about an image, get words and the masks that belong to them."""

import os
from collections.abc import Callable, Collection, Iterator
from inspect import signature
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from transformers import LogitsProcessorList

from glamm_mini import paths
from glamm_mini.assistant.answer import Chat, GroundedAnswer, GroundedPhrase, box_around, source_of
from glamm_mini.assistant.familiar import Familiar
from glamm_mini.assistant.generation import BROKEN, MAX_NEW_TOKENS, AnswerStream, Options, TokenChooser, checked_options
from glamm_mini.assistant.memory import FeatureMemory, evaluating, turn_of, weights_state
from glamm_mini.assistant.requests import WORDINGS, Request, Wording, checked_turns, prepare, question_of, requests_for
from glamm_mini.checkpoints.load import HUB, load_model
from glamm_mini.checkpoints.save import check_pair
from glamm_mini.dtypes import TYPES
from glamm_mini.model.glamm import GlammForConditionalGeneration, ImageFeatures
from glamm_mini.model.tokens import SEG
from glamm_mini.processing.boxes import box_array
from glamm_mini.processing.images import load_image
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.processing.prompts import plain_words
from glamm_mini.processing.tags import parse_grounded

__all__ = ["Assistant", "Chat", "GroundedAnswer", "GroundedPhrase", "Request", "load"]

Answers = GroundedAnswer | list[GroundedAnswer]

HALF = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "float": "float32"}
"""Other names that people have for number types."""

OTHER_NAMES = {"torch_dtype": "dtype", "device_map": "device", "quantization_config": "quantize"}
OTHER_NAMES |= {"load_in_4bit": "quantize='4bit'", "load_in_8bit": "quantize='8bit'"}
"""Keywords of transformers for which `load` has its own."""


class Assistant:
    """A model with its processor, ready to be asked. Made by `glamm_mini.load`.

    Every image is a path, a PIL image, or an array (H, W, 3) uint8 RGB; a list of them, or an array (N, H, W, 3), is
    answered as one batch and gives a list of answers. Every box is (x0, y0, x1, y1) in pixels of the upright picture,
    or in fractions 0..1 of its sides with normalised=True. Every call takes the options of `generation.Options` by
    keyword and returns a GroundedAnswer; FileNotFoundError and ValueError name what is wrong with an image, a text, a
    box or an option.

    Threads may share an assistant, and assistants a model; their answers take turns. Answers are given in evaluation
    mode; a model that was in training mode is so again afterwards. To train a model while another thread asks it, give
    the assistant a copy.

    max_new_tokens: the length at which answers are cut where a call names none; 256, or 512 in official mode.
    familiar: what pictures of the model's training look like; others get a note.
    """

    def __init__(
        self, model: GlammForConditionalGeneration, processor: GlammProcessor, familiar: Familiar | None = None
    ):
        check_pair(getattr(model, "_orig_mod", model), processor)  # what torch.compile made of one is good
        self.model, self.processor = model, processor
        self.max_new_tokens: int | None = None
        self._memory = FeatureMemory()
        self._familiar = familiar

    @property
    def config(self):
        """The model's configuration."""
        return self.model.config

    @property
    def wording(self) -> Wording:
        """The questions of `describe`, `segment` and the others, as this model's weights have met them."""
        return WORDINGS[self.config.mode]

    # --- questions --------------------------------------------------------------------------------------------------

    def ask(
        self, image, text: str, boxes=None, normalised: bool = False, history=None, **options: Unpack[Options]
    ) -> Answers:
        """Ask anything.

        text: refers to box k by its k-th `<bbox>`; without any, one per box is appended; other tags are plain words.
        boxes: (N, 4), or one box; None for none. Boxes that reach over the picture's edges are cut there.
        history: earlier turns, oldest first: (question, answer text), or (question, answer text, boxes in pixels).
        With a list of pictures: one text for all or a list of them; boxes and history as lists, one for each picture.
        """
        requests, several = requests_for(image, text, boxes, normalised, history)
        answers = self.answer_batch(requests, **options)
        return answers if several else answers[0]

    def describe(self, image, **options: Unpack[Options]) -> Answers:
        """A grounded description of the whole picture: a mask for each phrase."""
        return _want_masks(self.ask(image, self.wording.describe, **options))

    def segment(self, image, expression: str, **options: Unpack[Options]) -> Answers:
        """The mask of what an expression means, such as "the red balloon" or "both boats"."""
        return _want_masks(self.ask(image, question_of(expression, self.wording.segment, "expression"), **options))

    def describe_region(self, image, box, normalised: bool = False, **options: Unpack[Options]) -> Answers:
        """What one box holds, in words. With a list of pictures: a list of boxes, one for each."""
        for request in requests_for(image, self.wording.describe_region, box)[0]:
            boxes = box_array(request.boxes)
            if (count := 0 if boxes is None else len(boxes)) != 1:
                several = f"{count} were given; ask about several with ask(image, 'Is <bbox> left of <bbox>?', boxes)"
                raise ValueError(f"describe_region takes one box (x0, y0, x1, y1), but {several}")
        return self.ask(image, self.wording.describe_region, box, normalised, **options)

    def caption(self, image, **options: Unpack[Options]) -> Answers:
        """A short caption in words alone."""
        return self.ask(image, self.wording.caption, **options)

    def ground(self, image, sentence: str, **options: Unpack[Options]) -> Answers:
        """A given sentence with a mask for each of its phrases. A note tells where the model changed the sentence."""
        answers = _want_masks(self.ask(image, question_of(sentence, self.wording.ground, "sentence"), **options))
        before, behind = self.wording.ground.split("{x}")
        for answer in _listed(answers):
            given = answer.question.removeprefix(before).removesuffix(behind)
            if answer.caption.casefold().rstrip(".") != given.casefold().rstrip("."):
                answer.notes.append("the answer is not the sentence that was given, word by word")
        return answers

    def chat(self, image) -> Chat:
        """A conversation about one picture: `chat.say("What do you see?")`, then `chat.say("Where is it?")`."""
        return Chat(self, image)

    # --- answers ----------------------------------------------------------------------------------------------------

    def answer_batch(self, requests: list[Request], **options: Unpack[Options]) -> list[GroundedAnswer]:
        """Answer several requests at once; an image that several share (one path or one object) is read once."""
        if not isinstance(requests, list | tuple):
            raise ValueError(f"requests is a {type(requests).__name__}; expected a list of Request(image, question)")
        for k, request in enumerate(requests):
            if not isinstance(request, Request):
                raise ValueError(f"requests[{k}] is a {type(request).__name__}; expected Request(image, question)")
        length = MAX_NEW_TOKENS[self.config.mode] if self.max_new_tokens is None else self.max_new_tokens
        how, t = checked_options(options, length, len(requests)), self.processor.tokenizer
        drop = {t.bos_token_id, t.eos_token_id, t.pad_token_id} - {None}
        stream = AnswerStream(how["streamer"], drop, turn_of(self.model))
        try:
            with stream.turn:
                return self._answers(requests, how, stream) if requests else []
        finally:
            stream.close()

    def _answers(self, requests: list[Request], how: Options, stream: AnswerStream) -> list[GroundedAnswer]:
        keys = [os.fspath(r.image) if isinstance(r.image, str | os.PathLike) else id(r.image) for r in requests]
        given = {key: request.image for key, request in zip(keys, requests, strict=True)}
        which = [list(given).index(key) for key in keys]
        sources = [source_of(request.image) for request in requests]
        pictures = _one_by_one("picture", load_image, given.values())
        pairs = [(request, pictures[k]) for request, k in zip(requests, which, strict=True)]
        prepared = _one_by_one("question", lambda pair: prepare(pair[0], pair[1].shape[:2], self.processor), pairs)
        ids, boxes, own_boxes, notes = zip(*prepared, strict=True)
        batch, device = self.processor.prompts(ids), self.model.device
        chooser = TokenChooser(len(ids), how["temperature"], how["seed"], how["details"])
        if device.type == "meta":
            raise ValueError("the model lies on the meta device, without values; load it with glamm_mini.load")
        with torch.inference_mode(), evaluating(self.model):
            features = self._features(pictures)
            out = self.model.generate(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                image_index=torch.tensor(which),
                image_features=features,
                boxes=[None if fractions is None else fractions.to(device) for fractions in boxes],
                max_new_tokens=how["max_new_tokens"],
                do_sample=False,
                num_beams=1,
                eos_token_id=self.processor.tokenizer.eos_token_id,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList([chooser]),
                streamer=None if how["streamer"] is None else stream,
            )
        scores = torch.cat(chooser.scores, 1).cpu().numpy() if how["details"] else None
        measured = self._familiar is not None and self._familiar.fits(self.model)
        notes_on_pictures = self._familiar.notes(features.grounding) if measured else [[]] * len(pictures)
        answers = []
        for r, (request, image) in enumerate(pairs):
            answer = self._answer(out.sequences[r].tolist(), out.low_res[r], image, how)
            answer.notes = notes_on_pictures[which[r]] + notes[r] + answer.notes
            answer.question, answer.boxes, answer.source = request.question, own_boxes[r], sources[r]
            if how["details"]:
                answer.token_scores = scores[r, : len(answer.token_ids)]
            answers.append(answer)
        return answers

    def _answer(self, ids: list[int], low_res: torch.Tensor, image: np.ndarray, how: Options) -> GroundedAnswer:
        """From the ids of one answer and its mask logits (M, m, m) about a picture (H, W, 3)."""
        text, end = self.processor.decode(ids), self.processor.tokenizer.eos_token_id
        parsed, phrases = parse_grounded(text), []
        parsed.notes += [] if text.strip() else ["the model wrote nothing"]
        if len(parsed.phrases) != len(low_res):
            parsed.notes.append(f"the answer spells {SEG} in letters: phrases may have the masks of others")
        # A row that ended is as long as the longest of its batch: it holds the end, and padding behind it.
        if end in ids:
            ids = ids[: ids.index(end) + 1]
        elif len(ids) >= (most := how["max_new_tokens"]):
            parsed.notes.append(f"the answer was cut after {most} tokens; a larger max_new_tokens lets it go on")
        for span, (mask, logits) in zip(parsed.phrases, self._masks(low_res, image), strict=False):
            score = float(logits[mask].sigmoid().mean()) if mask.any() else 0.0
            kept = logits.float().numpy() if how["details"] else None
            phrases.append(GroundedPhrase(span.text, span.span, mask.numpy(), box_around(mask.numpy()), score, kept))
        token_ids = np.array(ids, np.int64) if how["details"] else None
        return GroundedAnswer(text, parsed.caption, phrases, parsed.notes, image, token_ids=token_ids)

    def _masks(self, low_res: torch.Tensor, image: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Masks (H, W) bool and their logits for mask logits (M, m, m) about a picture (H, W, 3).

        One at a time: at twenty megapixels, the logits of each take 80 MB. Raises ValueError if one is not finite.
        """
        if not bool(low_res.isfinite().all()):
            raise ValueError(BROKEN.format(where="in a mask"))
        for own in low_res.cpu():
            masks, logits = self.processor.post_process_masks(own[None], image.shape[:2])
            yield masks[0], logits[0]

    def encode(self, image) -> ImageFeatures:
        """What both image encoders make of one picture."""
        with torch.inference_mode(), evaluating(self.model):
            return self._features([load_image(image)])

    def _features(self, pictures: list[np.ndarray]) -> ImageFeatures:
        """Features of the pictures, of which the last ones are kept for further turns."""

        def encode(unknown: list[np.ndarray]) -> ImageFeatures:
            images = self.processor.images(unknown).to(self.model.device, self.model.dtype)
            return self.model.encode_images(images["global_images"], images["grounding_images"])

        state = (self.processor.config.mode, weights_state(self.model))
        return self._memory.features(pictures, state, encode)

    def teacher_force(self, image, conversation: list[tuple[str, str]]) -> list[np.ndarray]:
        """Masks (H, W) for every [SEG] of given answers, as the official referring segmentation is scored."""
        picture, turns = load_image(image), checked_turns("conversation", conversation)
        turns = [(plain_words(question), answer) for question, answer in turns]
        row, room = self.processor.encode(turns)[0], self.processor.room
        if len(row) > room or self.config.tokens.bbox in row:
            raise ValueError(f"conversation has {len(row)} tokens; expected at most {room}, and no <bbox> among them")
        ids = torch.tensor([row], device=self.model.device)
        with torch.inference_mode(), evaluating(self.model):
            out = self.model(ids, image_features=self._features([picture]), return_logits=False)
        return [mask.numpy() for mask, _ in self._masks(out.low_res, picture)]


def _one_by_one(what: str, do: Callable, items: Collection) -> list:
    """`do` of each item. Where there are several, an error says which one it is about."""
    done = []
    for k, item in enumerate(items):
        try:
            done.append(do(item))
        except (ValueError, FileNotFoundError) as error:
            if len(items) == 1:
                raise
            kind = ValueError if isinstance(error, ValueError) else FileNotFoundError  # not one of its own subclasses
            raise kind(f"{what} {k} of {len(items)}: {error}") from error
    return done


def _listed(answers: Answers) -> list[GroundedAnswer]:
    return answers if isinstance(answers, list) else [answers]


def _want_masks(answers: Answers) -> Answers:
    for answer in _listed(answers):
        if not any(phrase.mask.any() for phrase in answer.phrases):
            answer.notes.append("the answer points at nothing in the picture")
    return answers


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
    lora: folder of an adapter that is put beside the weights. revision, token, cache_dir, subfolder: of the hub.
    Raises FileNotFoundError or ValueError that names what is missing, damaged or foreign, and TypeError for a keyword
    that does not exist.
    """
    known = dict.fromkeys([*signature(load).parameters, *signature(load_model).parameters, *HUB])
    known = [key for key in known if key not in ("name", "placement", "hub")]
    for key in placement:
        if key not in known:
            hint = f"; it is called {OTHER_NAMES[key]} here" if key in OTHER_NAMES else ""
            raise TypeError(f"load() has no keyword {key!r}{hint}; it takes {', '.join(known)}")
    kind, count = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
    there = ["auto", "cpu", *(f"{kind.type}:{k}" for k in range(count))]
    device = ("cuda" if "cuda:0" in there else "cpu") if device is None else str(device)
    if device not in there and f"{device}:0" not in there:
        raise ValueError(f"device is {device!r}; expected one of {', '.join(there)}: PyTorch finds no other here")
    dtype = HALF.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if dtype not in (None, "stored", *TYPES, *TYPES.values()):
        raise ValueError(f"dtype is {dtype!r}; expected {', '.join(TYPES)} or stored")
    model, processor = load_model(name, dtype, device=device, quantize=quantize, **placement)
    # What its folder, or a bundled model, knows of the pictures of its training; one of the hub knows nothing.
    folder = Path(name)
    if not folder.is_dir() and str(name) == folder.name:
        folder = paths.checkpoint_folder(folder.name)
    # An adapter may have learned other pictures, and a subfolder is another model.
    is_plain = placement.get("lora") is None and placement.get("subfolder") is None
    return Assistant(model.eval(), processor, Familiar.read(folder) if is_plain else None)
