"""What limits the tiny model? GLaMM put together from its backbones, with its own encoders or with perfect ones.

    python -m glamm_mini.storybook.pretrain.ceilings --backbones data/checkpoints/backbones --scenes 40
    python -m glamm_mini.storybook.pretrain.ceilings --phrases tiny --scenes 120

Perfect encoders write the true code of every patch and region, so that what is still wrong comes from the language
model or the segmenter; the difference to the second row is the encoder's. Nothing was trained together yet: both rows
also tell where GLaMM's own training starts. With `--phrases`, a trained model's captions are taken apart instead; see
`next_phrase`.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from glamm_mini import paths
from glamm_mini.assistant.assistant import Assistant, load
from glamm_mini.data.sample import Sample
from glamm_mini.model.glamm import ImageFeatures
from glamm_mini.storybook.dataset import evaluation_samples
from glamm_mini.storybook.pretrain import run
from glamm_mini.storybook.pretrain.code_book import CodeBook
from glamm_mini.storybook.pretrain.dense_labels import dense_labels, region_labels
from glamm_mini.storybook.pretrain.next_phrase import next_phrases, table
from glamm_mini.storybook.pretrain.validation import storybook_figures


class OracleEncoders(Assistant):
    """An assistant that knows the scenes it is asked about, and hands the language model their codes."""

    def __init__(self, model, processor):
        super().__init__(model, processor)
        self.known: dict[bytes, Sample] = {}
        width = model.config.text.hidden_size
        self.picture_code = CodeBook(width, grid=model.config.image_grid)
        model.region_encoder = _RegionCodes(CodeBook(width))

    def learn(self, samples: list[Sample]) -> None:
        """Scenes that will be asked about."""
        self.known = {sample.image.tobytes(): sample for sample in samples}

    def _features(self, pictures: list) -> ImageFeatures:
        unknown = [picture.shape for picture in pictures if picture.tobytes() not in self.known]
        if unknown:
            raise ValueError(f"{len(unknown)} pictures, the first of shape {unknown[0]}, were not given to `learn`")
        samples = [self.known[picture.tobytes()] for picture in pictures]
        self.model.region_encoder.samples = samples
        images = self.processor.images(pictures)["grounding_images"]
        tokens = self.picture_code(dense_labels(samples, self.config.image_grid))
        number = torch.arange(len(samples))[:, None, None, None]  # in place of feature maps: which scene it is
        return ImageFeatures(tokens, [number], self.model.grounding_encoder(images))


class _RegionCodes(nn.Module):
    """In place of the region encoder: looks up what lies in a box."""

    def __init__(self, book: CodeBook):
        super().__init__()
        self.book, self.samples = book, []

    def forward(self, levels: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        """As the region encoder's, but `levels` holds the numbers of the scenes."""
        asked = [self.samples[int(number)] for number in levels[0].flatten()]
        return self.book(region_labels(asked, boxes))[:, 0]  # (N, 1, D) -> (N, D)


def ceilings(backbones: Path, scenes: int) -> dict[str, dict[str, float]]:
    """Figures on val scenes, as in training, of GLaMM from backbones: with "own encoders" and "perfect encoders"."""
    own, perfect = Assistant(*_assembled(backbones)), OracleEncoders(*_assembled(backbones))
    return {
        "own encoders": storybook_figures(own, scenes),
        "perfect encoders": storybook_figures(perfect, scenes, before=perfect.learn),
    }


def _assembled(backbones: Path):
    """GLaMM from backbones, and its processor."""
    glamm, processor = run.untrained("tiny")
    run.load_backbones(Path(backbones), glamm)
    return glamm, processor


def main() -> None:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", type=Path, default=None, help="folder; default: the bundled ones")
    parser.add_argument("--scenes", type=int, default=40, help="how many val scenes (default 40)")
    parser.add_argument("--phrases", metavar="MODEL", help="what this model names next in true captions, instead")
    parser.add_argument("--split", default="test", help="of --phrases (default test)")
    parser.add_argument("--seed", type=int, default=7, help="of --phrases (default 7)")
    given = parser.parse_args()
    if given.phrases is not None:
        samples = evaluation_samples("gcg", given.split, given.seed, given.scenes)
        print(table(next_phrases(load(given.phrases), samples)))
        return
    found = ceilings(given.backbones or paths.checkpoint_folder("backbones"), given.scenes)
    print(f"{'':26}" + "".join(f"{name:>18}" for name in found))
    for figure in next(iter(found.values())):
        print(f"{figure:26}" + "".join(f"{figures[figure]:18.3f}" for figures in found.values()))


if __name__ == "__main__":
    main()
