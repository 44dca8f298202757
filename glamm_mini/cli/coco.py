"""A folder of pictures to one COCO file: images with captions, and a mask, a box and a category for each phrase."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from typer import echo

from glamm_mini.cli.options import Loading, check_place, progress
from glamm_mini.evaluation.predict import fingerprint
from glamm_mini.paths import write_whole
from glamm_mini.processing.images import encode_mask, load_image
from glamm_mini.training.run_folder import lock_alone


def write_coco(pictures: Sequence[Path], ask: str | None, file: Path, batch_size: int, loading: Loading) -> Path:
    """Ask about pictures and write `file`; what a stopped run has answered lies in FILE.part and is not asked again.

    A picture that cannot be read is named and left out. Raises ValueError for a file that is there already, if
    FILE.part was made with other settings, and while another process writes it.
    """
    check_place(file, "--coco", folder=False, new=True)
    assistant, part = loading.load(), file.with_name(f"{file.name}.part")
    settings = {"description": "made by glamm-mini demo --coco", "ask": ask, **loading.settings()}
    settings["weights"] = fingerprint(assistant)
    alone, header = [path.name for path in pictures], json.dumps({"made with": settings}).encode() + b"\n"
    names = {path: path.name if alone.count(path.name) == 1 else path.as_posix() for path in pictures}
    stamps = {path: [path.stat().st_size, path.stat().st_mtime_ns] for path in pictures}
    check_place(file, "--coco", folder=False, new=True)  # again: another process may have come to its end
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("a+b") as log:
        if not lock_alone(log):
            raise ValueError(f"another process writes {part}: wait for it, or name another file with --coco")
        known = _read_part(log, header)
        unasked = [path for path in pictures if known.get(names[path], {}).get("stamp") != stamps[path]]
        for path in unasked:  # a picture of this name was another one
            known.pop(names[path], None)
        with progress("asking", len(pictures), kept=part) as advance:
            advance(len(pictures) - len(unasked))
            for start in range(0, len(unasked), batch_size):
                batch = unasked[start : start + batch_size]
                for path, record in _answered(assistant, batch, ask):
                    record["image"]["file_name"] = names[path]
                    known[names[path]] = record | {"stamp": stamps[path]}
                    log.write(json.dumps(known[names[path]]).encode() + b"\n")
                    log.flush()
                advance(len(batch))
        made = coco([known[names[path]] for path in pictures if names[path] in known], settings)
        write_whole(file, json.dumps(made) + "\n")
    part.unlink(missing_ok=True)
    images, masks, categories = (len(made[kind]) for kind in ("images", "annotations", "categories"))
    echo(f"{images} pictures, {masks} masks, {categories} categories")
    if images < len(pictures):
        echo(f"{len(pictures) - images} pictures could not be read and are left out")
    return file


def coco(records: Sequence[dict], info: dict) -> dict:
    """Records of pictures as one COCO dictionary, as pycocotools.coco.COCO reads it.

    Numbers begin with 1. Categories are the phrases in small letters without their article. Each annotation also
    holds its `score` and its `phrase`, each image its `caption` and what there is to note.
    """
    found = [(number, own) for number, record in enumerate(records, start=1) for own in record["annotations"]]
    names = sorted({_category(own["phrase"]) for _, own in found})
    numbers = {name: number for number, name in enumerate(names, start=1)}
    return {
        "info": info,
        "licenses": [],
        "images": [{"id": number, **record["image"]} for number, record in enumerate(records, start=1)],
        "annotations": [
            {"id": number, "image_id": image, "category_id": numbers[_category(own["phrase"])], **own}
            for number, (image, own) in enumerate(found, start=1)
        ],
        "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in numbers.items()],
    }


def _category(phrase: str) -> str:
    """In small letters without the article; "unnamed" for a mask that has no phrase."""
    words = phrase.casefold().split()
    words = words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words
    return " ".join(words).strip(" .,;:!?") or "unnamed"


def _answered(assistant, paths: Sequence[Path], ask: str | None) -> Iterator[tuple[Path, dict]]:
    pictures = {}
    for path in paths:
        try:
            pictures[path] = load_image(path)
        except (ValueError, OSError) as error:
            echo(f"left out: {error}", err=True)
    if not pictures:
        return
    asked = list(pictures.values())
    answers = assistant.ask(asked, ask) if ask else assistant.describe(asked)
    for path, answer in zip(pictures, answers, strict=True):
        height, width = answer.image.shape[:2]
        image = {"width": width, "height": height, "caption": answer.caption, "notes": answer.notes}
        seen = [_annotation(phrase) for phrase in answer.phrases if phrase.box is not None]  # COCO has no empty masks
        yield path, {"image": image, "annotations": seen}


def _annotation(phrase) -> dict:
    x0, y0, x1, y1 = phrase.box
    return {
        "segmentation": encode_mask(phrase.mask),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(phrase.mask.sum()),
        "iscrowd": 0,
        "score": round(phrase.score, 4),
        "phrase": phrase.text,
    }


def _read_part(log: BinaryIO, header: bytes) -> dict[str, dict]:
    """What a stopped run has written, by file name; a last line that a kill has cut is taken away, be it the first."""
    log.seek(0)
    content = log.read()
    if not (content.startswith(header) or header.startswith(content)):
        raise ValueError(
            f"{log.name} holds answers that were made with other settings; give the same, delete it to start anew, or "
            "name another file with --coco"
        )
    known, whole = {}, len(header) if content.startswith(header) else 0
    with contextlib.suppress(ValueError):
        for line in content[whole:].splitlines(keepends=True):
            record = json.loads(line if line.endswith(b"\n") else b"cut")
            known[record["image"]["file_name"]] = record
            whole += len(line)
    log.truncate(whole)
    if not whole:
        log.write(header)
    return known
