"""`glamm-mini demo`: ask about pictures and draw the answers; replaces no file that it did not write itself."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.text import Text
from typer import Argument, Option, echo

from glamm_mini.cli.options import Loading, check_place, with_options, working
from glamm_mini.paths import samples_folder, write_whole

OVERVIEW = "overview"  # name of the sheet with all answers
RECORD = ".glamm-mini.json"  # in each folder of answers: what was written there, name to SHA-256


@with_options
def demo(
    images: Annotated[
        list[Path] | None, Argument(help="Pictures, or folders of them, to ask about; the bundled ones if left out.")
    ] = None,
    ask: Annotated[str | None, Option(help="A question; without one, the picture is described.")] = None,
    box: Annotated[
        list[str] | None,
        Option(metavar="X0 Y0 X1 Y1", help="A box in pixels that the question is about; may be repeated."),
    ] = None,
    out: Annotated[Path, Option(help="Folder for the answers.")] = Path("outputs/demo"),
    coco: Annotated[
        Path | None, Option(metavar="FILE", help="Write one COCO JSON file, in place of pictures and pages.")
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="With --coco, how many pictures to ask about at once.")] = 8,
    loading: Loading = Loading(),  # noqa: B008  frozen, and never seen: its fields are the options
) -> None:
    """Ask about pictures; draw the answers, or write them as one COCO file.

    Writes NAME.png (picture and sentence), NAME.html and NAME.json (the prediction record with its masks) for each
    picture, and one overview.png of several; what lies in the folder and is not of an earlier demo is never replaced.
    The last line printed is the path of the file to look at. With --coco, a stopped run goes on where it was.
    """
    if ask is not None and not ask.strip():
        raise ValueError("the question of --ask is empty; leave --ask out to have the pictures described")
    paths, boxes = pictures_to_ask(images), check_boxes(box)
    if boxes and (not ask or coco):
        raise ValueError("--box needs a question, add --ask 'What is this?', and pictures that are drawn, not --coco")
    if coco is not None:
        from glamm_mini.cli.coco import write_coco

        echo(write_coco(paths, ask, coco, batch_size, loading))
    else:
        echo(_draw(paths, ask, boxes, Outputs(out), loading))


def _draw(paths: Sequence[Path], ask: str | None, boxes: list | None, outputs: "Outputs", loading: Loading) -> Path:
    """Write the answers; returns the picture to look at. What cannot work is refused before the model is loaded."""
    from glamm_mini.processing.images import load_image
    from glamm_mini.visuals.answer_html import answer_page
    from glamm_mini.visuals.answer_png import answer_png, compose
    from glamm_mini.visuals.encode import png_bytes

    for path in paths:
        load_image(path)
    names = names_of(paths)
    files = [f"{name}.{ending}" for name in names for ending in ("png", "html", "json")]
    outputs.check(files + [f"{OVERVIEW}.png"] * (len(names) > 1))
    assistant = loading.load()
    console, cards = Console(highlight=False, soft_wrap=True), []
    for number, (name, path) in enumerate(zip(names, paths, strict=True), start=1):
        with working(f"picture {number} of {len(paths)}: {path.name}"):
            answer = assistant.ask(str(path), ask, boxes=boxes) if ask else assistant.describe(str(path))
            cards.append(answer_png(answer, width=1000))
            record = json.dumps(answer.to_dict(image_id=name), ensure_ascii=False, indent=1)
            outputs.write(f"{name}.png", png_bytes(cards[-1], limit=math.inf))
            outputs.write(f"{name}.html", answer_page([answer], title=f"GLaMM: {name}").encode("utf-8", "replace"))
            outputs.write(f"{name}.json", (record + "\n").encode("utf-8", "backslashreplace"))
        console.print(Text(f"{path.name}  ", style="dim") + colored(answer))
        for note in answer.notes:
            console.print(Text(f"  note: {note}", style="dim"))
    if len(cards) > 1:
        return outputs.write(f"{OVERVIEW}.png", png_bytes(compose(cards), limit=math.inf))
    return outputs.folder / f"{names[0]}.png"


def pictures_to_ask(images: Sequence[Path] | None) -> list[Path]:
    """The pictures that were named, those of named folders by name, or the bundled ones.

    FileNotFoundError names the first that does not exist, and a folder without pictures.
    """
    found: list[Path] = []
    for path in images or [samples_folder()]:
        own = [path]
        if path.is_dir():
            from glamm_mini.assistant.answer import WRITTEN

            own = sorted(p for p in path.iterdir() if p.suffix.lower() in WRITTEN and p.is_file())
        elif not path.is_file():
            raise FileNotFoundError(f"no picture at {path}; name an image file, or none to use the bundled ones")
        if not own:
            raise FileNotFoundError(f"the folder {path} holds no picture; expected files such as *.png or *.jpg")
        found += own
    return list(dict.fromkeys(found))


def check_boxes(boxes: Sequence[str] | None) -> list[tuple[float, ...]] | None:
    """Each "X0 Y0 X1 Y1" as four numbers; None for no box. ValueError for anything else and for swapped corners."""
    numbers = []
    for text in boxes or []:
        try:
            x0, y0, x1, y1 = box = tuple(float(word) for word in text.replace(",", " ").split())
            if not (x0 < x1 < math.inf and y0 < y1 < math.inf and min(box) > -math.inf):
                raise ValueError
        except ValueError:
            expected = "four numbers X0 Y0 X1 Y1 in pixels with X0 < X1 and Y0 < Y1"
            raise ValueError(f"--box {text} is no box; expected {expected}") from None
        numbers.append(box)
    return numbers or None


def names_of(paths: Sequence[Path]) -> list[str]:
    """One file name without ending for each picture; pictures of the same name get a number."""
    names = {OVERVIEW: OVERVIEW}  # by their small letters: Windows and macOS take "A" and "a" for one file
    for path in paths:
        name, number = path.stem, 2
        while name.casefold() in names:
            name, number = f"{path.stem}-{number}", number + 1
        names[name.casefold()] = name
    return list(names.values())[1:]


def colored(answer) -> Text:
    """The answer's sentence for a terminal, its phrases in the colors of their masks."""
    from glamm_mini.visuals.palette import color, hex_color, ink_on
    from glamm_mini.visuals.sentence import loose_phrases, sentence_runs

    runs = sentence_runs(answer)
    for loose in loose_phrases(answer):
        runs += [(" ", None), loose]
    line = Text()
    for text, phrase in runs:
        shade = None if phrase is None else color(phrase)
        line.append(text, shade and f"{hex_color(ink_on(shade))} on {hex_color(shade)}")
    return line if line.plain.strip() else Text("(no words)", style="dim")


class Outputs:
    """The files of one folder of the user: nothing is replaced but what we wrote, as it still is.

    Raises ValueError for what is no folder, and if its record is not one of ours.
    """

    def __init__(self, folder: Path):
        check_place(folder, "--out", folder=True)
        self.folder, self.written, record = folder, {}, folder / RECORD
        if os.path.lexists(record):
            try:
                found = json.loads(record.read_text("utf-8")).items()
                self.written = {str(name): str(digest) for name, digest in found}
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{record} is damaged; delete it, or choose another folder") from error

    def check(self, names: Iterable[str]) -> None:
        """Raises ValueError that names the first file that is there already and was not written by us as it is now."""
        for path in map(self.folder.joinpath, names):
            ours = path.is_file() and _digest(path) in self.written.get(path.name, "").split()
            if os.path.lexists(path) and not ours:
                raise ValueError(
                    f"{path} is there already, and glamm-mini has not written it, or it was changed since; name "
                    "another folder with --out, or move the file away"
                )

    def write(self, name: str, content: bytes) -> Path:
        """Write one file, whole or not at all; returns its path. Raises ValueError as `check`."""
        self.check([name])
        self.folder.mkdir(parents=True, exist_ok=True)
        # The record comes first: a kill in between leaves no file that a second run would take for the user's.
        # Of the file that is there, too: a write that fails leaves it, still ours.
        kept = [_digest(path) for path in [self.folder / name] if path.exists()]
        self.written[name] = " ".join([*kept, hashlib.sha256(content).hexdigest()])
        write_whole(self.folder / RECORD, json.dumps(self.written, indent=1) + "\n")
        return write_whole(self.folder / name, content)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
