#!/usr/bin/env bash
# torchvision 0.24.0 (with torch 2.9.0): one mask without a pixel, and masks_to_boxes has no box for any mask.
#
# Masks of things that lie behind others are often empty. Called with no masks at all, the function gives an empty
# tensor (0, 4), and release 0.29.1 gives an empty mask the box 0 0 0 0, so one would expect that here too. It raises
# "min(): Expected reduction dim ...", which names neither the mask nor what to do.
#
# Prints "no masks: (0, 4), an empty mask: RuntimeError"; exits 1 if that has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.9.0 torchvision==0.24.0 numpy==2.4.6
cd "$place"
"$place/venv/bin/python" - << 'PYTHON'
import sys
import torch
from torchvision.ops import masks_to_boxes

none = tuple(masks_to_boxes(torch.zeros(0, 4, 5, dtype=torch.bool)).shape)
masks = torch.zeros(2, 4, 5, dtype=torch.bool)
masks[0, 1, 2] = True
try:
    found = str(masks_to_boxes(masks).tolist())
except RuntimeError as error:
    found = type(error).__name__
print(f"no masks: {none}, an empty mask: {found}")
sys.exit((none, found) != ((0, 4), "RuntimeError"))
PYTHON
