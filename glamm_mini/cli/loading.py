"""How a command loads its model: the options that `demo`, `predict` and `evaluate` share, and the call behind them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="A bundled model, a folder or a hub id; official or ours.")]
Device = Annotated[
    str | None,
    typer.Option(help="Such as cuda:0; auto: GPUs, then memory, then disk. A GPU if left out, where there is one."),
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16, or stored: each weight's own.")]
Quantize = Annotated[str | None, typer.Option(help="4bit or 8bit for the language model's weights.")]
VisionTower = Annotated[
    str | None, typer.Option(help="Folder or hub id of CLIP, which official checkpoints leave out.")
]
OffloadFolder = Annotated[Path | None, typer.Option(help="Folder for weights that find no memory, with --device auto.")]
Lora = Annotated[Path | None, typer.Option(help="An adapter's folder, put beside the weights and not merged.")]
Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="PREFIX", help="Leave out official names that begin so; may be repeated."),
]


@dataclass(frozen=True)
class Loading:
    """What a user said about loading; see `glamm_mini.load` for each field."""

    model: str = "tiny"
    device: str | None = None
    dtype: str = "float32"
    quantize: str | None = None
    vision_tower: str | None = None
    offload_folder: Path | None = None
    drop: tuple[str, ...] | list[str] | None = None
    lora: Path | None = None

    def load(self):
        """The assistant. Raises as `glamm_mini.load` does."""
        import glamm_mini

        return glamm_mini.load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize,
            vision_tower=self.vision_tower,
            offload_folder=self.offload_folder,
            drop=tuple(self.drop or ()),
            lora=self.lora,
        )

    def settings(self) -> dict:
        """What answers depend on, for the settings beside results; where the weights lie changes none."""
        own = {"model": self.model, "dtype": self.dtype, "quantize": self.quantize, "vision_tower": self.vision_tower}
        return own | {"drop": list(self.drop or ())} | ({"lora": str(self.lora)} if self.lora else {})
