"""A small saved checkpoint, and what the tests of this folder share."""

import pytest
import torch
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
