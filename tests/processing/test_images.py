"""Every kind of picture becomes upright RGB uint8; what is no picture is refused with a reason."""

from io import BytesIO, StringIO
from os import PathLike

import numpy as np
import pytest
import torch
from PIL import Image

from glamm_mini.processing.images import load_image

CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
"""Red, green; blue, yellow: no turn of it looks like another."""


def block(side=8):
    """CORNERS, each a square of `side` pixels, wide by one more column so that a quarter turn changes the shape."""
    big = CORNERS.repeat(side, 0).repeat(side, 1)
    return np.concatenate([big, big[:, -1:]], axis=1)


def check(array, shape):
    assert array.dtype == np.uint8 and array.shape == shape


def test_arrays_pil_images_and_paths_give_the_same(tmp_path):
    array = block()
    Image.fromarray(array).save(tmp_path / "a.png")
    for given in (array, Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png"), np.asfortranarray(array)):
        np.testing.assert_array_equal(load_image(given), array)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_gray_arrays_become_three_equal_channels(shape):
    gray = np.arange(35, dtype=np.uint8).reshape(shape)
    out = load_image(gray)
    check(out, (5, 7, 3))
    for channel in range(3):
        np.testing.assert_array_equal(out[..., channel], gray.reshape(5, 7))


@pytest.mark.parametrize("through", ["array", "pil", "file"])
def test_transparency_lies_on_white(through, tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]
    given = rgba if through == "array" else Image.fromarray(rgba)
    if through == "file":
        given.save(tmp_path / "a.png")
        given = tmp_path / "a.png"
    out = load_image(given)[0]
    assert out[0].tolist() == [255, 0, 0]
    assert out[1].tolist() == [255, 255, 255]
    assert np.abs(out[2].astype(int) - 127).max() <= 1


def test_gray_with_alpha_and_palette_with_a_transparent_color(tmp_path):
    gray = Image.merge("LA", [Image.new("L", (2, 1), 10), Image.new("L", (2, 1), 0)])
    assert load_image(gray).tolist() == [[[255] * 3] * 2]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert load_image(tmp_path / "p.png").tolist() == [[[255, 255, 255], [200, 10, 10]]]
    palette.save(tmp_path / "q.png")
    assert load_image(tmp_path / "q.png").tolist() == [[[0, 0, 0], [200, 10, 10]]]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "P", "RGBX"])
def test_other_color_spaces_come_close(mode):
    # Palettes and YCbCr round; one bit is black and white.
    source = Image.fromarray(block()).convert("L" if mode in ("1", "L") else "RGB")
    out = load_image(source.convert(mode))
    check(out, (16, 17, 3))
    if mode == "1":
        assert set(np.unique(out)) <= {0, 255}
    else:
        assert np.abs(out.astype(int) - np.asarray(source.convert("RGB"))).max() <= 4


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (9, 6), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    out = load_image(tmp_path / "a.jpg")
    check(out, (6, 9, 3))
    assert out[..., 0].min() > 245 and out[..., 1:].max() < 10


def test_sixteen_bit_gray_keeps_its_brightness(tmp_path):
    values = np.array([[0, 257, 32896, 51400]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", Image.fromarray(values)):
        np.testing.assert_allclose(load_image(given)[0, :, 0], [0, 1, 128, 200], atol=1)


def test_wider_gray_is_scaled_to_its_brightest_value():
    wide = Image.fromarray(np.array([[-5, 0, 500, 1000]], np.int32))
    assert load_image(wide)[0, :, 0].tolist() == [0, 0, 127, 255]
    broken = Image.fromarray(np.array([[np.nan, np.inf, 0.25, 0.5]], np.float32))
    assert load_image(broken)[0, :, 0].tolist() == [0, 0, 63, 127]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation, tmp_path):
    # How a viewer turns each orientation (EXIF 2.3, tag 0x0112).
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation](block())
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(block()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), turned)


def test_one_pixel_wide_and_one_pixel_images():
    check(load_image(np.zeros((40, 1, 3), np.uint8)), (40, 1, 3))
    check(load_image(np.zeros((1, 40), np.uint8)), (1, 40, 3))
    check(load_image(Image.new("RGB", (1, 1), (1, 2, 3))), (1, 1, 3))


def test_first_frame_of_an_animated_gif(tmp_path):
    frames = [Image.new("RGB", (6, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    assert Image.open(tmp_path / "a.gif").n_frames == 2
    assert (load_image(tmp_path / "a.gif") == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "type float32; expected uint8"),
        (np.zeros((4, 4), bool), "type bool"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\); expected"),
        (np.zeros((2, 4, 4, 3), np.uint8), "expected"),
        (np.zeros((0, 4, 3), np.uint8), "no pixel"),
        (np.zeros(4, np.uint8), "expected"),
        (np.zeros((4, 4), np.uint16), "type uint16; expected uint8 .*scale it"),
        ([], "list"),
        ([[1, 2], [3]], "list"),
        ({}, "dict"),
        (5, "int"),
        (torch.zeros(8, 8, 3), "float32"),
        (torch.zeros(8, 8, 3, dtype=torch.bfloat16), "bfloat16"),
        (torch.rand(3, 8, 8, requires_grad=True), "float32"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8, device="meta"), "uint8"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\)"),
        (b"\x89PNG", "the given data"),
        (BytesIO(b"words"), "the open file"),
        (StringIO("words"), "StringIO"),
        (None, "no image was given, but None; give a path"),
        ("", "no image was given, but ''; give a path"),
        ("  ", "no image was given"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels large; it holds no pixel"),
    ],
)
def test_other_arrays_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        load_image(given)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image at .*none.png"):
        load_image(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="is a folder, not an image; give the path of one of its files"):
        load_image(tmp_path)
    with pytest.raises(FileNotFoundError, match="no image at https:.*download it first"):
        load_image("https://example.org/a.png")
    (tmp_path / "words.png").write_text("no picture")
    with pytest.raises(FileNotFoundError, match="aaaa"):
        load_image("a" * 5000)
    with pytest.raises(ValueError, match="words.png"):
        load_image(tmp_path / "words.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg", "a.gif", "a.webp", "a.tiff", "a.bmp"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
            load_image(tmp_path / name)
    with Image.open(tmp_path / "a.jpg") as opened, pytest.raises(ValueError, match="the PIL image cannot be read"):
        load_image(opened)


def test_too_many_pixels_are_refused_by_name(tmp_path, monkeypatch):
    Image.fromarray(block()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match="a.png has too many pixels"):
        load_image(tmp_path / "a.png")


def test_twenty_megapixels_are_read_at_full_size(tmp_path):
    Image.new("L", (5000, 4000), 77).save(tmp_path / "a.png")
    out = load_image(tmp_path / "a.png")
    check(out, (4000, 5000, 3))
    assert (out[::500, ::500] == 77).all()


def test_bytes_open_files_paths_of_any_kind_and_tensors(tmp_path):
    array = block()
    Image.fromarray(array).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()

    class Place(PathLike):
        def __fspath__(self):
            return str(tmp_path / "a.png")

    with open(tmp_path / "a.png", "rb") as file:
        for given in (data, bytearray(data), BytesIO(data), file, Place(), torch.from_numpy(array.copy())):
            np.testing.assert_array_equal(load_image(given), array)


def test_what_was_read_is_not_read_again_and_nobody_can_change_it():
    array = block()
    first = load_image(array)
    assert load_image(first) is first and not first.flags.writeable
    array[:] = 0
    assert first.any()  # the caller's own array may change
    frames = np.stack([block(), block()])
    view = frames[1].view()
    view.flags.writeable = False
    kept = load_image(view)
    frames[:] = 0
    assert kept.any(), "the whole of which a view is a part may change, too"


@pytest.mark.parametrize("ending", ["ppm", "tga", "pcx", "sgi", "dds", "ico", "jp2", "im", "msp", "xbm"])
def test_files_of_other_kinds_are_refused(tmp_path, ending):
    try:
        Image.new("1" if ending in ("msp", "xbm") else "RGB", (16, 16)).save(tmp_path / f"x.{ending}")
    except OSError:
        pytest.skip(f"this Pillow cannot write {ending}")
    with pytest.raises(ValueError, match=f"x.{ending}"):
        load_image(tmp_path / f"x.{ending}")


def test_no_other_program_is_started_for_a_file(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("subprocess.Popen", None)
    with pytest.raises(ValueError, match="a.png") as seen:
        load_image(tmp_path / "a.png")
    assert "hostscript" not in str(seen.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.tiff", "no_ending"])
def test_the_named_formats_are_read_whatever_the_name(tmp_path, name):
    Image.new("RGB", (8, 6), (200, 10, 10)).save(tmp_path / name, format="PNG" if name == "no_ending" else None)
    assert np.abs(load_image(tmp_path / name).astype(int) - [200, 10, 10]).max() < 8


def test_the_first_of_a_camera_s_two_pictures_in_one_file(tmp_path):
    first, second = (Image.new("RGB", (8, 6), color) for color in ((200, 10, 10), (10, 200, 10)))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert np.abs(load_image(tmp_path / "a.jpg").astype(int) - [200, 10, 10]).max() < 8
