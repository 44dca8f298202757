"""What from_parts fetches, from where, and how much memory filling a model takes."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from memory_probe import giving_back
from pretrained_parts import parts_config, save_clip, save_llama, save_sam

from glamm_mini.checkpoints import parts
from glamm_mini.checkpoints.files import find_folder, weight_files
from glamm_mini.checkpoints.parts import SAM_FILES, sam_file


@pytest.fixture()
def hub(tmp_path, monkeypatch):
    """A hub of one folder: `snapshot_download` copies what the patterns allow, and notes what was asked for."""
    import huggingface_hub

    remote, cache, asked = tmp_path / "remote", tmp_path / "cache", []

    def snapshot_download(name, allow_patterns, **_):
        asked.append(name)
        if name != "someone/model":
            raise OSError("404 Client Error\nmore")
        cache.mkdir(exist_ok=True)
        for file in remote.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, cache / file.name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return remote, cache, asked


@pytest.mark.parametrize("pickled", [False, True])
def test_only_files_that_run_no_code_are_fetched(hub, pickled):
    remote, cache, asked = hub
    model = save_llama(remote, parts_config(), shard="1GB")
    (remote / "modeling_evil.py").write_text("raise SystemExit")
    (remote / "training_args.bin").write_bytes(b"x")
    torch.save(model.state_dict(), remote / "pytorch_model.bin")
    if pickled:
        (remote / "model.safetensors").unlink()
    found = weight_files(find_folder("someone/model"))
    assert [file.name for file in found] == ["pytorch_model.bin" if pickled else "model.safetensors"]
    fetched = {file.name for file in cache.iterdir()}
    assert "tokenizer.model" in fetched and not fetched & {"modeling_evil.py", "training_args.bin"}
    assert ("pytorch_model.bin" in fetched) == pickled, "pickles are fetched where there is nothing else"


def test_a_hub_without_the_model_is_one_line(hub):
    with pytest.raises(FileNotFoundError, match=r"no/body.*\(404 Client Error\)"):
        find_folder("no/body")


def test_published_weights_are_fetched_once_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    fetched = []

    def download(address, target, hash_prefix):
        fetched.append((address, hash_prefix))
        Path(target).write_bytes(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    source = sam_file(SAM_FILES[0])
    assert source == (tmp_path / "hub" / "checkpoints" / SAM_FILES[0])
    assert sam_file(SAM_FILES[0]) == source
    assert fetched == [(parts.SAM_ADDRESS + SAM_FILES[0], "01ec64")]
    (tmp_path / SAM_FILES[1]).write_bytes(b"own")
    assert sam_file(SAM_FILES[1]) == Path(SAM_FILES[1]) and len(fetched) == 1, "a file here comes first"


@pytest.mark.parametrize("whole", [True, False])
def test_published_weights_have_the_hash_that_their_name_says(tmp_path, monkeypatch, whole):
    """By torch's own download, from a stand-in for the site."""
    content = b"weights"
    name = f"sam_vit_b_{hashlib.sha256(content).hexdigest()[:6]}.pth"
    site = tmp_path / "site"
    site.mkdir()
    (site / name).write_bytes(content if whole else b"weighty")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(parts, "SAM_FILES", (name,))
    local = site.as_uri() + "/"
    urlopen = torch.hub.urlopen

    def from_site(request):
        return urlopen(request.full_url.replace(parts.SAM_ADDRESS, local))

    monkeypatch.setattr(torch.hub, "urlopen", from_site)
    if whole:
        assert sam_file(name).read_bytes() == content
        return
    with pytest.raises(ValueError, match=name):
        sam_file(name)
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def refuse(address, target, hash_prefix):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(FileNotFoundError, match="could not be fetched .no route to host.*give its path"):
        sam_file(SAM_FILES[0])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


MEASURE = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from pretrained_parts import parts_config
from glamm_mini.checkpoints import parts

def kilobytes(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

folder = Path(sys.argv[1])
config = parts_config()
for name, value in dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=8).items():
    setattr(config.text, name, value)
parts._started(config, parts.torch.float32, 0)  # what is imported on first use
parts.official_tokenizer(folder / "llama")
Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
before = kilobytes("VmRSS")
model = parts.from_parts(config, folder / "clip", folder / "llama", folder / "sam.pth")[0]
print((kilobytes("VmHWM") - before) * 1024 / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's highest mark of memory")
def test_memory_peaks_near_the_models_own_size(tmp_path):
    config = parts_config()
    save_clip(tmp_path / "clip", config)
    save_sam(tmp_path / "sam.pth", config)
    wide = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=8, head_dim=8)
    model = save_llama(tmp_path / "llama", config, shard="1GB", **wide)
    torch.save(model.state_dict(), tmp_path / "llama" / "pytorch_model.bin")  # mapped whole, as Vicuna's are
    (tmp_path / "llama" / "model.safetensors").unlink()
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), here]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(here).parent, env=giving_back())
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0.9 < float(done.stdout) < 1.2
