"""A whole answer about a picture, from its pixels to its masks, the first time and with its features kept."""

from glamm_mini import paths
from glamm_mini.assistant.assistant import Assistant, load
from glamm_mini.checks.bench.measure import Measured, Report, Setting, paired
from glamm_mini.processing.images import load_image

SIZE = "tiny"


def run(setting: Setting) -> Report:
    """Seconds to describe each bundled picture: `plain` encodes it anew, `ours` has it from an earlier question."""
    name = setting.size or SIZE
    glamm = load(name, device=str(setting.device), dtype=str(setting.dtype).removeprefix("torch."))
    report = Report("answers", setting.as_dict() | {"model": name})
    for path in sorted(paths.samples_folder().glob("*.png")):
        picture, seen = load_image(path), Assistant(glamm.model, glamm.processor)

        def first(picture=picture):
            return Assistant(glamm.model, glamm.processor).describe(picture)  # one that has seen no picture yet

        def again(picture=picture, seen=seen):
            return seen.describe(picture)

        first(), again()
        slow, fast, fresh, kept = paired(f"answers {path.stem}", first, again, setting)
        pairs = zip(fresh.phrases, kept.phrases, strict=True)
        difference = max((float((a.mask ^ b.mask).sum()) for a, b in pairs), default=0.0)
        report.rows[f"{path.stem}: {len(kept.text.split())} words, {len(kept.phrases)} masks"] = Measured(
            "s", fast, slow, difference
        )
        report.notes += [] if fresh.text == kept.text else [f"{path.stem}: the two answers differ in words"]
    report.notes.append("difference: pixels of a mask; the words were compared too")
    return report
