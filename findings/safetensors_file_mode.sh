#!/usr/bin/env bash
# safetensors 0.8.0 (with numpy 2.4.6) writes files that nobody but their owner can read, whatever the umask says.
#
# Seen: under umask 022, open(..., "w") makes a file of mode 644, `safetensors.numpy.save_file` one of mode 600.
# One would expect 644: json files of the same checkpoint, and torch.save, follow the umask. On a shared cluster
# folder, colleagues see a whole checkpoint of which they can read everything but the weights.
#
# Prints "json 644, safetensors 600" and exits 0 while that is so; exits 1 if it has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
umask 022
cd "$place"
"$place/venv/bin/python" - << 'PYTHON'
import os, stat, sys
import numpy as np
from safetensors.numpy import save_file

with open("config.json", "w") as file:
    file.write("{}")
save_file({"weight": np.zeros(4, np.float32)}, "model.safetensors")
json_mode, weights_mode = (stat.S_IMODE(os.stat(name).st_mode) for name in ("config.json", "model.safetensors"))
print(f"json {json_mode:o}, safetensors {weights_mode:o}")
sys.exit((json_mode, weights_mode) != (0o644, 0o600))
PYTHON
