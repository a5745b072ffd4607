"""Pictures come out as a person sees them, whatever they are stored as."""

import os

import numpy as np
import pytest
import torch
from data_cases import photo, write_png16
from PIL import ExifTags, Image, PngImagePlugin

from excite.data.pictures import centre_box, check_pictures, crop_box, load_image, read_picture
from excite.errors import UserError
from tolerances import JPEG_LEVELS, RESIZE_LEVELS

SIDE = 16
RGB = photo(SIDE, SIDE)
GREY = RGB[..., 1]
# A checkerboard of opaque, half transparent and invisible fields.
ALPHA = np.kron(np.arange(16).reshape(4, 4) % 3, np.ones((4, 4))).astype(np.uint8) * 127
OVER_WHITE = np.round(RGB * (ALPHA[..., None] / 255) + 255 * (1 - ALPHA[..., None] / 255))


def everything(width, height):
    return 0, 0, width, height


def read(path, size=SIDE, **ask):
    """[size, size, 3] as int."""
    return read_picture(path, size, everything, **ask).permute(1, 2, 0).numpy().astype(int)


def grey3(grey):
    return np.repeat(np.asarray(grey, dtype=int)[..., None], 3, axis=2)


def palette(*, colours=8):
    return Image.fromarray(RGB).quantize(colours)


def save(image, path, **options):
    image.save(path, **options)
    return path


def save_palette_with_transparent_colour(path):
    image = palette()
    image.save(path, transparency=image.getpixel((0, 0)))
    return path


def save_palette_with_alphas(path):
    palette().save(path, transparency=bytes([0, 255, 100, 255, 255, 255, 255, 255]))
    return path


def seen_through(path):
    """What transparency leaves over white, from the stored alpha, by the definition."""
    rgba = np.asarray(Image.open(path).convert("RGBA"), dtype=float)
    share = rgba[..., 3:] / 255
    return np.round(rgba[..., :3] * share + 255 * (1 - share))


EXACT = {
    "RGB png": (lambda p: save(Image.fromarray(RGB), p), RGB, ".png"),
    "RGB bmp": (lambda p: save(Image.fromarray(RGB), p), RGB, ".bmp"),
    "RGB tiff": (lambda p: save(Image.fromarray(RGB), p), RGB, ".tif"),
    "RGB ppm": (lambda p: save(Image.fromarray(RGB), p), RGB, ".ppm"),
    "grey png": (lambda p: save(Image.fromarray(GREY), p), grey3(GREY), ".png"),
    "grey pgm": (lambda p: save(Image.fromarray(GREY), p), grey3(GREY), ".pgm"),
    "black and white": (
        lambda p: save(Image.fromarray(GREY > 100), p),
        grey3(np.where(GREY > 100, 255, 0)),
        ".png",
    ),
    "palette png": (lambda p: save(palette(), p), np.asarray(palette().convert("RGB")), ".png"),
    "palette gif": (lambda p: save(palette(), p), np.asarray(palette().convert("RGB")), ".gif"),
    "16-bit grey png": (
        lambda p: save(Image.fromarray(GREY.astype(np.uint16) * 257), p),
        grey3(GREY),
        ".png",
    ),
    "16-bit grey tiff": (
        lambda p: save(Image.fromarray(GREY.astype(np.uint16) * 257), p),
        grey3(GREY),
        ".tif",
    ),
    "16-bit grey pgm": (
        lambda p: save(Image.fromarray(GREY.astype(np.uint16) * 257), p),
        grey3(GREY),
        ".pgm",
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_opaque_modes(tmp_path, case):
    write, expected, suffix = EXACT[case]
    assert np.array_equal(read(write(tmp_path / f"x{suffix}")), expected)


THROUGH = {
    "RGBA": lambda p: save(Image.fromarray(np.dstack([RGB, ALPHA])), p),
    "grey with alpha": lambda p: save(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), p),
    "palette with a transparent colour": save_palette_with_transparent_colour,
    "palette with alphas": save_palette_with_alphas,
    "RGB with a transparent colour": lambda p: save(
        Image.fromarray(RGB), p, transparency=tuple(int(v) for v in RGB[3, 3])
    ),
    "grey with a transparent colour": lambda p: save(Image.fromarray(GREY), p, transparency=int(GREY[3, 3])),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("case", THROUGH)
def test_transparent_parts_are_seen_over_white(tmp_path, case):
    path = THROUGH[case](tmp_path / "x.png")
    expected = seen_through(path)
    assert not np.array_equal(expected, np.asarray(Image.open(path).convert("RGBA"))[..., :3])
    assert np.abs(read(path) - expected).max() <= 1


def test_transparency_by_hand(tmp_path):
    path = save(Image.fromarray(np.dstack([RGB, ALPHA])), tmp_path / "x.png")
    assert np.abs(read(path) - OVER_WHITE).max() <= 1


@pytest.mark.parametrize("transparent", [None, (0, 0, 0)])
def test_16_bit_colour(tmp_path, transparent):
    write_png16(tmp_path / "x.png", RGB.astype(np.uint16) * 257, transparent=transparent)
    assert np.array_equal(read(tmp_path / "x.png"), RGB)


def test_16_bit_colour_with_a_transparent_colour(tmp_path):
    pixels = RGB.astype(np.uint16) * 257
    write_png16(tmp_path / "x.png", pixels, transparent=tuple(int(v) for v in pixels[2, 5]))
    expected = RGB.copy()
    expected[(RGB == RGB[2, 5]).all(-1)] = 255
    assert np.array_equal(read(tmp_path / "x.png"), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_modes(tmp_path, mode):
    # Through CMYK and back Pillow is exact for the colours that it converted itself.
    path = save(Image.fromarray(RGB).convert(mode), tmp_path / "x.jpg", quality=95, subsampling=0)
    expected = grey3(Image.fromarray(RGB).convert("L")) if mode == "L" else RGB
    assert np.abs(read(path) - expected).mean() < JPEG_LEVELS


def test_the_first_frame_of_an_animation(tmp_path):
    other = Image.fromarray(255 - RGB).quantize(8)
    path = save(palette(), tmp_path / "x.gif", save_all=True, append_images=[other])
    assert np.array_equal(read(path), np.asarray(palette().convert("RGB")))


# How a viewer turns what is stored, by the EXIF standard's eight orientations.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def turned(path, stored, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(stored).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(tmp_path, orientation):
    stored = photo(SIDE, SIDE)
    path = turned(tmp_path / "x.png", stored, orientation)
    assert np.array_equal(read(path), TURNS[orientation](stored))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_boxes_are_chosen_in_the_upright_picture(tmp_path, orientation, suffix):
    stored = photo(40, 64)
    upright = TURNS[orientation](stored)
    path = turned(tmp_path / f"x{suffix}", stored, orientation)

    def choose(width, height):
        assert (height, width) == upright.shape[:2]
        return 3, 7, 3 + 20, 7 + 20

    got = read_picture(path, 20, choose).permute(1, 2, 0).numpy().astype(int)
    error = np.abs(got - upright[7:27, 3:23])
    assert error.max() == 0 if suffix == ".png" else error.mean() < JPEG_LEVELS


def test_an_orientation_that_does_not_exist_is_ignored(tmp_path):
    stored = photo(SIDE, SIDE)
    assert np.array_equal(read(turned(tmp_path / "x.png", stored, 9)), stored)


@pytest.mark.parametrize("size", [8, 24, 37])
@pytest.mark.parametrize("box", [(0, 0, 50, 30), (10, 5, 41, 30)])
def test_resizing_against_pillow(tmp_path, size, box):
    image = Image.fromarray(photo(30, 50))
    path = save(image, tmp_path / "x.png")
    got = read_picture(path, size, lambda width, height: box).permute(1, 2, 0).numpy().astype(int)
    expected = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    assert np.abs(got - np.asarray(expected)).max() <= RESIZE_LEVELS


def test_large_jpeg_files_are_decoded_no_smaller_than_needed(tmp_path, monkeypatch):
    import excite.data.pictures as module

    path = save(Image.fromarray(photo(600, 900)), tmp_path / "x.jpg")
    decoded = []
    real = module._flat
    monkeypatch.setattr(module, "_flat", lambda image, *rest: decoded.append(image.size) or real(image, *rest))
    for box in ((0, 0, 900, 600), (0, 0, 500, 200), (0, 0, 100, 600), (0, 0, 40, 40)):
        read_picture(path, 64, lambda width, height, box=box: box)
    # An eighth would make 600 pixels 75, a quarter makes 200 only 50, and a half makes 100 only 50.
    assert decoded == [(113, 75), (250, 100), (100, 600), (40, 40)]


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpeg_files_decoded_small_look_the_same(tmp_path, orientation):
    path = turned(tmp_path / "x.jpg", photo(600, 903), orientation)
    upright = Image.fromarray(TURNS[orientation](np.asarray(Image.open(path))))
    box = (101, 53, 101 + 400, 53 + 380)
    got = read_picture(path, 32, lambda width, height: box).permute(1, 2, 0).numpy().astype(int)
    expected = upright.crop(box).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(got - np.asarray(expected)).mean() < JPEG_LEVELS


def test_grey_for_grey_networks(tmp_path):
    path = save(Image.fromarray(RGB), tmp_path / "x.png")
    got = read_picture(path, SIDE, everything, channels=1)
    assert np.array_equal(got[0].numpy(), np.asarray(Image.fromarray(RGB).convert("L")))
    assert got.shape == (1, SIDE, SIDE)


def test_output_is_contiguous_and_owned(tmp_path):
    for name, pixels in (("rgb", RGB), ("grey", GREY)):
        path = save(Image.fromarray(pixels), tmp_path / f"{name}.png")
        got = read_picture(path, SIDE, everything)
        assert got.dtype == torch.uint8 and got.is_contiguous() and got.shape == (3, SIDE, SIDE)
        got.zero_()


def test_tiny_boxes_and_pictures(tmp_path):
    path = save(Image.fromarray(RGB[:1, :1]), tmp_path / "x.png")
    assert np.array_equal(read(path, 5), np.broadcast_to(RGB[0, 0], (5, 5, 3)))


def test_centre_box_is_what_a_resize_and_a_centre_crop_keep():
    assert centre_box(256, 256, 224 / 256) == (16, 16, 240, 240)
    assert centre_box(500, 256, 224 / 256) == (138, 16, 362, 240)
    assert centre_box(3, 1, 0.1) == (1, 0, 2, 1)


def test_crop_boxes_are_inside_and_as_stated():
    boxes = [crop_box(400, 300, seed=0, epoch=e, index=i) for e in range(20) for i in range(200)]
    left, top, right, bottom = torch.tensor(boxes, dtype=torch.float64).T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 400 and bottom.max() <= 300
    wide, tall = right - left, bottom - top
    share, ratio = wide * tall / (400 * 300), wide / tall
    # Rounding to whole pixels moves a side by up to half a pixel of at least 84.
    assert 0.08 * 0.98 < share.min() < 0.1 and 0.95 < share.max() <= 1
    assert 0.75 * 0.98 < ratio.min() < 0.78 and 1.29 < ratio.max() < 4 / 3 * 1.02
    assert (left == 0).any() and (right == 400).any() and (top == 0).any() and (bottom == 300).any()
    assert len(set(boxes)) > 3900


@pytest.mark.parametrize(("width", "height"), [(2000, 40), (40, 2000), (1, 1), (7, 1)])
def test_crop_boxes_of_extreme_pictures(width, height):
    for index in range(50):
        left, top, right, bottom = crop_box(width, height, seed=0, epoch=0, index=index)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_load_image_prepares_as_the_set_says(tmp_path):
    path = save(Image.fromarray(photo(256, 300)), tmp_path / "x.png")
    got = load_image(path, {"in_channels": 3, "image_size": 224, "view": 224 / 256})
    assert np.array_equal(got.permute(1, 2, 0).numpy(), photo(256, 300)[16:240, 38:262])
    assert load_image(path, {"in_channels": 1, "image_size": 28, "view": 1.0}).shape == (1, 28, 28)


def test_load_image_names_what_it_cannot_read(tmp_path):
    (tmp_path / "x.png").write_text("not a picture")
    ask = {"in_channels": 3, "image_size": 224, "view": 1.0}
    with pytest.raises(UserError, match=r"x\.png cannot be read as a picture: not a picture in a known format"):
        load_image(tmp_path / "x.png", ask)
    with pytest.raises(UserError, match=r"y\.png cannot be read as a picture: No such file"):
        load_image(tmp_path / "y.png", ask)


def broken(folder):
    """Files of every kind of damage, beside two whole ones."""
    # Noise, so that the file is mostly picture and little header.
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "good.jpg")
    Image.fromarray(photo(64, 64)).save(folder / "good.png")
    jpeg, png = (folder / "good.jpg").read_bytes(), (folder / "good.png").read_bytes()
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "cut.png").write_bytes(png[: len(png) // 2])
    (folder / "flipped.png").write_bytes(png[:60] + bytes(255 - b for b in png[60:90]) + png[90:])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("<html>404</html>")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    Image.fromarray(photo(8, 8)[..., 0].astype(np.float32)).save(folder / "float.tif")
    return ["cut.jpg", "cut.png", "flipped.png", "empty.jpg", "text.jpg", "gone.jpg", "float.tif"]


def test_check_finds_what_cannot_be_read(tmp_path):
    bad = broken(tmp_path)
    got = check_pictures(tmp_path, ["good.jpg", *bad, "good.png"])
    assert list(got) == bad
    assert all(got.values())
    assert "truncated" in got["cut.jpg"]
    assert got["gone.jpg"] == "No such file or directory"
    assert "no agreed black and white" in got["float.tif"]
    for name in bad:
        with pytest.raises(Exception):  # noqa: B017 - decoders raise anything
            read(tmp_path / name)


def test_check_remembers_and_sees_changes(tmp_path, monkeypatch):
    import excite.data.pictures as module

    Image.fromarray(RGB).save(tmp_path / "x.png")
    looked = []
    real = module._fault
    monkeypatch.setattr(module, "_fault", lambda path: looked.append(path) or real(path))
    assert check_pictures(tmp_path, ["x.png"]) == check_pictures(tmp_path, ["x.png"]) == {}
    assert len(looked) == 1
    whole = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(b"broken")
    assert list(check_pictures(tmp_path, ["x.png"])) == ["x.png"]
    # As long as the first, at another time.
    (tmp_path / "x.png").write_bytes(whole[:40] + bytes(len(whole) - 40))
    os.utime(tmp_path / "x.png", (1, 1))
    assert list(check_pictures(tmp_path, ["x.png"])) == ["x.png"]
    assert len(looked) == 3


def test_check_counts_a_bomb_as_unreadable(tmp_path, monkeypatch):
    Image.fromarray(photo(40, 40)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    assert "exceeds limit" in check_pictures(tmp_path, ["x.png"])["x.png"]


def test_text_in_a_picture_does_no_harm(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 1000)
    path = save(Image.fromarray(RGB), tmp_path / "x.png", pnginfo=info)
    assert np.array_equal(read(path), RGB)
