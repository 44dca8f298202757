"""How much memory a configuration needs, counted on shapes alone."""

import torch

from glamm_mini.config import GlammConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "8bit": 1, "4bit": 0.5}


def memory_report(config: GlammConfig, dtype: str = "float32", trained: str = "all") -> dict[str, dict[str, float]]:
    """Per part: `millions` of parameters and `megabytes` of weights; `total` sums them.

    With trained="all" a row `training` adds gradients and AdamW's two float32 moments (activations not counted).
    Raises ValueError for an unknown dtype or `trained`.
    """
    from glamm_mini.model.glamm import GlammForConditionalGeneration

    if dtype not in BYTES:
        raise ValueError(f"dtype {dtype!r} is unknown; expected one of {', '.join(BYTES)}")
    if trained not in ("all", "none"):
        raise ValueError(f"trained is {trained!r}; expected 'all' or 'none'")
    with torch.device("meta"):
        model = GlammForConditionalGeneration(config)
    report = {}
    for name, part in model.named_children():
        count = sum(p.numel() for p in part.parameters())
        report[name] = {"millions": count / 1e6, "megabytes": count * BYTES[dtype] / 1e6}
    total = sum(part["millions"] for part in report.values())
    report["total"] = {"millions": total, "megabytes": total * BYTES[dtype]}
    if trained == "all":
        report["training"] = {"millions": total, "megabytes": total * (2 * BYTES[dtype] + 8)}
    return report
