"""A small saved checkpoint, and what the tests of this folder share."""

import shutil

import pytest
import torch
from official_files import small_state, write_clip, write_official
from small_models import small_config, small_model

from glamm_mini.checkpoints.save import save_model
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.storybook.language.tokenizer import build_wordpiece


@pytest.fixture(scope="module")
def made():
    """A model and its processor."""
    torch.set_num_threads(1)
    tokenizer = build_wordpiece("a kite What is".split())
    text = small_config().text.to_dict() | {"vocab_size": len(tokenizer)}
    processor = GlammProcessor(small_config(text=text, mode="fixed"), tokenizer)
    return small_model(text=text, tokens=processor.config.tokens, seg_state="at"), processor


@pytest.fixture
def saved(made, tmp_path):
    """The folder that holds them."""
    return save_model(tmp_path / "runs" / "model", *made)


@pytest.fixture(scope="module")
def state():
    """All official weights of the small case, CLIP's among them."""
    return small_state()


@pytest.fixture(scope="module")
def files(tmp_path_factory, state):
    """An official folder, with CLIP's own in `clip_of` it."""
    folder = tmp_path_factory.mktemp("hub")
    write_clip(folder / "clip", state)
    return write_official(folder / "glamm", state)


@pytest.fixture
def copy(files, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(files, tmp_path / "glamm")
