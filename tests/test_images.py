"""What is read is what a viewer shows: guards against images that come out turned, white, black, or as raw errors.

Files are written by Pillow, or byte by byte, from arrays; what is right is known from the array and the formats' texts.
"""

import io
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fxlrp.errors import FxlrpError, InputError, MaskError
from fxlrp.io.images import read_image, read_mask
from fxlrp.training.data import MaskedImages, read_folder

ORIENTATION = 274

H, W = 5, 8

# From the text of EXIF: on which sides of what is shown lie row 0 and column 0 of what is stored.
STORED = {
    1: lambda shown: shown,  # top, left
    2: lambda shown: shown[:, ::-1],  # top, right
    3: lambda shown: shown[::-1, ::-1],  # bottom, right
    4: lambda shown: shown[::-1],  # bottom, left
    5: lambda shown: shown.swapaxes(0, 1),  # left, top
    6: lambda shown: shown[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda shown: shown[::-1].swapaxes(0, 1),  # left, bottom
}


def noise(*shape, top=256, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


def save(path, values, orientation=None, **options):
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
        values = STORED[orientation](values)
    Image.fromarray(np.ascontiguousarray(values)).save(path, **options)
    return path


def read(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return np.array(image)


def grey(path):
    pixels = read(path)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def png(path, values, color, *chunks):
    """A PNG of 16 bits, as its text says: Pillow writes no such colours."""
    body = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(body)), (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(file)
    return path


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"}),
                                                 ("webp", {"lossless": True})])  # fmt: skip
def test_an_image_is_upright(tmp_path, ending, options, orientation):
    shown = noise(H, W, 3)
    np.testing.assert_array_equal(read(save(tmp_path / f"x.{ending}", shown, orientation, **options)), shown)


@pytest.mark.parametrize("orientation", STORED)
def test_a_photograph_is_upright(tmp_path, orientation):
    shown = np.kron(noise(H, W, 3), np.ones((8, 8, 1), np.uint8))
    found = read(save(tmp_path / "x.jpg", shown, orientation, quality=98, subsampling=0))
    assert found.shape == shown.shape
    assert np.abs(found.astype(int) - shown).max() < 12


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("ending", "scale", "dtype"),
    [
        ("png", 1, np.uint8),
        ("png", 257, np.uint16),
        ("tif", 1, np.uint8),
        ("tif", 257, np.uint16),
        ("tif", 257, np.int32),
        ("tif", 257, np.float32),
    ],
)
def test_grey_is_upright(tmp_path, ending, scale, dtype, orientation):
    shown = noise(H, W)
    path = save(tmp_path / f"x.{ending}", (scale * shown.astype(float)).astype(dtype), orientation)
    np.testing.assert_array_equal(grey(path), shown)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "CMYK", "LA"])
def test_a_tiff_of_any_mode_is_upright(tmp_path, mode, orientation):
    shown = Image.fromarray(noise(H, W, 3)).convert(mode)
    stored = STORED[orientation](np.arange(H * W).reshape(H, W))
    turned = Image.new(mode, stored.shape[::-1])
    if mode == "P":
        turned.putpalette(shown.getpalette())
    for (row, column), place in np.ndenumerate(stored):
        turned.putpixel((column, row), shown.getpixel((place % W, place // W)))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned.save(tmp_path / "x.tif", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "x.tif"), np.array(shown.convert("RGB")))


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_is_turned_by_its_own_exif(tmp_path, dtype, orientation):
    shown = noise(H, W, top=2, dtype=bool)
    path = save(tmp_path / "x.png", np.iinfo(dtype).max * shown.astype(dtype), orientation)
    np.testing.assert_array_equal(read_mask(path), shown)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_the_mask_of_a_turned_photograph_lies_on_the_object(tmp_path, ending):
    mask = np.zeros((40, 24), bool)
    mask[2:16, 3:10] = True
    shown = np.where(mask, 255, 0)[..., None].repeat(3, 2).astype(np.uint8)
    for label in ("a", "b"):
        for kind in ("images", "masks"):
            (tmp_path / kind / label).mkdir(parents=True)
        save(tmp_path / "images" / label / f"1.{ending}", shown, 6)
        save(tmp_path / "masks" / label / "1.png", np.uint8(255) * mask)
    samples = read_folder(tmp_path / "images", tmp_path / "masks").samples
    x, _, found, _ = MaskedImages(samples, 120, torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))[0]
    assert x[:, found].mean() > 0.9
    assert x[:, ~found].mean() < 0.02
    # As it is stored, the photograph is as wide as this mask.
    save(tmp_path / "masks" / "b" / "1.png", np.uint8(255) * mask.T)
    with pytest.raises(MaskError, match="40 x 24 and its image 24 x 40, upright"):
        read_folder(tmp_path / "images", tmp_path / "masks")


def test_an_exif_that_is_broken_turns_nothing(tmp_path):
    shown = noise(H, W, 3)
    Image.fromarray(shown).save(tmp_path / "x.png", exif=b"Exif\0\0no tags at all")
    np.testing.assert_array_equal(read(tmp_path / "x.png"), shown)
    exif = Image.Exif()
    exif[ORIENTATION] = 9
    Image.fromarray(shown).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "x.png"), shown)


DEEP = {
    "16 bits": (257, np.uint16),
    "12 bits in 16": (4095 / 255, np.uint16),
    "8 bits in 16": (1, np.uint16),
    "16 bits in 32": (257, np.int32),
    "8 bits in 32": (1, np.int32),
    "32 bits": ((2**31 - 1) / 255, np.int32),
    "floats to 1": (1 / 255, np.float32),
    "floats to 255": (1, np.float32),
    "floats to 4095": (4095 / 255, np.float32),
    "floats to 65535": (257, np.float32),
}


@pytest.mark.parametrize(("scale", "dtype"), DEEP.values(), ids=DEEP)
def test_deep_grey_is_from_black_to_white(tmp_path, scale, dtype):
    shown = np.arange(256, dtype=np.uint8).reshape(8, 32)
    path = save(tmp_path / "x.tif", (shown.astype(float) * scale).astype(dtype))
    assert np.abs(grey(path).astype(int) - shown).max() <= (0 if scale in (1, 257, 1 / 255) else 1)
    np.testing.assert_array_equal(read_mask(path), shown >= 128)


def test_deep_grey_of_formats_that_say_what_is_white(tmp_path):
    shown = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(grey(save(tmp_path / "x.png", shown * np.uint16(257))), shown)
    for white, name in ((4095, "12"), (65535, "16")):
        values = np.round(shown * (white / 255)).astype(">u2")
        (tmp_path / f"{name}.pgm").write_bytes(b"P5 32 8 %d\n" % white + values.tobytes())
        np.testing.assert_array_equal(grey(tmp_path / f"{name}.pgm"), shown)
    # A dark one is dark: no pixel is white only because it is the brightest.
    dark = shown // 2
    np.testing.assert_array_equal(grey(save(tmp_path / "x.png", dark * np.uint16(257))), dark)
    np.testing.assert_array_equal(grey(save(tmp_path / "x.tif", dark / np.float32(255))), dark)


def test_tiffs_of_other_spellings(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    shown = np.arange(256, dtype=np.uint8).reshape(8, 32)
    deep = shown * np.uint16(257)
    for values, options in (
        (deep, {"byteorder": ">"}),
        (deep[::-1, ::-1], {"photometric": "miniswhite"}),
        (shown[::-1, ::-1], {"photometric": "miniswhite"}),
        ((shown / np.float32(255))[::-1, ::-1], {"photometric": "miniswhite"}),
        (shown * np.uint32(0x01010101), {}),
    ):
        tifffile.imwrite(tmp_path / "x.tif", values, **options)
        np.testing.assert_array_equal(grey(tmp_path / "x.tif"), shown)
    tifffile.imwrite(tmp_path / "x.tif", np.stack([deep, deep.T.reshape(8, 32), deep[::-1]], -1), photometric="rgb")
    np.testing.assert_array_equal(read(tmp_path / "x.tif"), np.stack([shown, shown.T.reshape(8, 32), shown[::-1]], -1))
    tifffile.imwrite(tmp_path / "x.tif", noise(2, 8, 32, 3), photometric="rgb")
    np.testing.assert_array_equal(read(tmp_path / "x.tif"), noise(2, 8, 32, 3)[0])


def test_deep_colours(tmp_path):
    values = noise(H, W, 4) * np.uint16(257)
    np.testing.assert_array_equal(read(png(tmp_path / "x.png", values[..., :3], 2)), noise(H, W, 4)[..., :3])
    over = over_white(noise(H, W, 4)[..., :3], noise(H, W, 4)[..., 3:])
    assert np.abs(read(png(tmp_path / "x.png", values, 6)) - over).max() <= 1
    assert np.abs(read(png(tmp_path / "x.png", values[..., :2], 4)) - over_white(*np.split(values[..., :2] // 257, 2, 2))).max() <= 1  # fmt: skip # noqa: E501
    path = png(tmp_path / "x.png", values[..., 0], 0, (b"tRNS", values[1, 2, :1].astype(">u2").tobytes()))
    expected = noise(H, W, 4)[..., 0]
    clear = expected == expected[1, 2]
    np.testing.assert_array_equal(grey(path), np.where(clear, 255, expected))
    np.testing.assert_array_equal(read_mask(path), (expected >= 128) & ~clear)


def over_white(color, alpha):
    return color / 255 * alpha + (255 - alpha.astype(float))


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_what_is_transparent_is_white_and_no_foreground(tmp_path, ending):
    values = noise(H, W, 4)
    values[0, :, 3] = 0
    path = save(tmp_path / f"x.{ending}", values, **({"lossless": True, "exact": True} if ending == "webp" else {}))
    found = read(path)
    assert np.abs(found - over_white(values[..., :3], values[..., 3:])).max() <= 1
    assert (found[0] == 255).all()
    # A cutout, as drawing programs save it: the object as it is, and nothing around it.
    values[...] = 255
    values[2:4, 3:, 3] = 255
    mask = noise(H, W, top=2, dtype=bool)
    values[..., 3] = 255 * mask
    path = save(tmp_path / f"x.{ending}", values, **({"lossless": True} if ending == "webp" else {}))
    np.testing.assert_array_equal(read_mask(path), mask)


def test_transparency_of_other_modes(tmp_path):
    values = noise(H, W, 2)
    path = save(tmp_path / "x.png", values)
    assert np.abs(read(path) - over_white(values[..., :1], values[..., 1:])).max() <= 1
    indices = noise(H, W, top=3)
    for transparent, ending in ((1, "png"), (1, "gif"), (bytes([255, 128, 0]), "png")):
        image = Image.fromarray(indices, "L").convert("P")
        image.putdata(indices.ravel().tolist())
        image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
        image.save(tmp_path / f"p.{ending}", transparency=transparent)
        alpha = np.array([255, 0, 255] if transparent == 1 else [*transparent])[indices][..., None]
        color = 200 * np.eye(3)[indices]
        assert np.abs(read(tmp_path / f"p.{ending}") - over_white(color, alpha)).max() <= 1
        np.testing.assert_array_equal(read_mask(tmp_path / f"p.{ending}"), alpha[..., 0] > 0)
    image = Image.fromarray(np.full((2, 2, 3), 9, np.uint8))
    image.save(tmp_path / "x.png", transparency=(9, 9, 9))
    assert (read(tmp_path / "x.png") == 255).all()


def test_colours_of_other_kinds(tmp_path):
    bits = noise(H, W, top=2, dtype=bool)
    for ending in ("png", "tif", "bmp", "pbm"):
        Image.fromarray(255 * bits.astype(np.uint8)).convert("1").save(tmp_path / f"x.{ending}")
        np.testing.assert_array_equal(grey(tmp_path / f"x.{ending}"), 255 * bits)
    ink = np.kron(noise(H, W, 4), np.ones((8, 8, 1), np.uint8))
    for ending, options in (("tif", {}), ("jpg", {"quality": 100, "subsampling": 0})):
        Image.fromarray(ink, "CMYK").save(tmp_path / f"x.{ending}", **options)
        expected = (255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:].astype(float)) / 255
        assert np.abs(read(tmp_path / f"x.{ending}") - expected).max() <= (1 if ending == "tif" else 6)
    y, blue, red = (noise(H, W, 3) // 2 + 64).astype(float).transpose(2, 0, 1) - np.array([0, 128, 128])[:, None, None]
    Image.fromarray(noise(H, W, 3) // 2 + 64, "YCbCr").save(tmp_path / "x.tif")
    expected = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], -1).clip(0, 255)
    assert np.abs(read(tmp_path / "x.tif") - expected).max() <= 2


def test_lab(tmp_path):
    color = pytest.importorskip("skimage.color")
    shown = 60 + noise(H, W, 3) // 4
    lab = color.rgb2lab(shown / 255.0)
    stored = np.stack([lab[..., 0] * 2.55, lab[..., 1] % 256, lab[..., 2] % 256], -1).round().astype(np.uint8)
    image = Image.frombytes("LAB", (W, H), stored.tobytes())
    image.save(tmp_path / "x.tif")
    assert np.abs(read(tmp_path / "x.tif").astype(int) - shown).max() <= 8  # Other standard whites, eight bits.


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_an_animation_is_its_first_frame(tmp_path, ending):
    frames = [Image.new("RGB", (W, H), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:], **options)
    assert (read(tmp_path / f"x.{ending}") == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.float32([[0, np.nan]]), "not finite"),
        (np.float32([[0, np.inf]]), "not finite"),
        (np.float32([[-0.5, 0.5]]), "from -0.5 to 0.5"),
        (np.float32([[0, 1.5]]), "from 0 to 1.5"),
        (np.float32([[0, 7e4]]), "from 0 to 70000"),
        (np.int32([[-1024, 3000]]), "from -1024 to 3000"),
        (np.int32([[0, 70000]]), "from 0 to 70000"),
    ],
)
def test_numbers_without_brightness(tmp_path, values, words):
    path = save(tmp_path / "x.tif", values)
    with pytest.raises(InputError, match=words):
        read_image(path)
    with pytest.raises(MaskError, match=words):
        read_mask(path)


def test_labels_of_every_depth(tmp_path):
    labels = np.array([[0, 1, 2, 40]])
    for dtype in (np.uint8, np.uint16, np.int32, np.float32):
        assert read_mask(save(tmp_path / "x.tif", labels.astype(dtype))).tolist() == [[False, True, True, True]]
    # A blue as dark as this is no grey, and not black.
    assert read_mask(save(tmp_path / "x.png", np.uint8([[[0, 0, 0], [0, 0, 3]]]))).tolist() == [[False, True]]
    soft = np.float32([[0.0, 0.01, 0.5, 1.0]])
    assert read_mask(save(tmp_path / "x.tif", soft)).tolist() == [[False, False, True, True]]


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no image")
    path = save(tmp_path / "x.png", noise(90, 90, 3))
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:9000])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    for name, words in (
        ("none.png", "No such file"),
        (".", "Is a directory"),
        ("text.png", "is not an image"),
        ("x.png", "more pixels than are read at once"),
    ):
        with pytest.raises(InputError, match=words):
            read_image(tmp_path / name)
        with pytest.raises(MaskError, match=words):
            read_mask(tmp_path / name)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"cut\.png is not an image that can be read: it is broken"):
        read_image(tmp_path / "cut.png")


def whole_files():
    """Small files of all common formats."""
    color, deep = Image.fromarray(noise(9, 11, 3)), Image.fromarray(noise(9, 11, top=2**16, dtype=np.uint16))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    kinds = [
        *((color, ending, {}) for ending in ("BMP", "GIF", "ICO", "JPEG", "PNG", "PPM", "TGA", "TIFF", "WEBP")),
        *((color, ending, {"exif": exif}) for ending in ("JPEG", "PNG", "TIFF", "WEBP")),
        (deep, "PNG", {}),
        (deep, "TIFF", {}),
        (Image.fromarray(noise(9, 11) / np.float32(255)), "TIFF", {}),
        (color.convert("P"), "PNG", {"transparency": 3}),
        (color.convert("RGBA"), "PNG", {}),
        (color.convert("P"), "GIF", {"transparency": 3, "save_all": True, "append_images": [color]}),
    ]
    for image, kind, options in kinds:
        file = io.BytesIO()
        image.save(file, kind, **options)
        yield file.getvalue()


def mutated(whole, rng):
    data = bytearray(whole)
    if rng.random() < 0.25:
        return data[: rng.randrange(len(data))]
    reach = rng.choice([len(data), min(len(data), 120)])  # What a format is made of stands in front, mostly.
    for _ in range(rng.choice([1, 2, 5, 20])):
        data[rng.randrange(reach)] = rng.choice([0, 255, rng.randrange(256)])
    return data


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_broken_files_are_errors_of_ours(tmp_path, monkeypatch, count):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)  # Whatever a broken size says, memory is not filled.
    rng, path, found = random.Random(0), tmp_path / "x", {"whole": 0, "broken": 0}
    for whole in whole_files():
        for _ in range(count):
            path.write_bytes(mutated(whole, rng))
            for read_it in (read_image, read_mask):
                fault = None
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        read_it(path)
                    except FxlrpError as error:  # Anything else fails the test.
                        fault = str(error)
                found["whole" if fault is None else "broken"] += 1
                assert fault is None or (str(path) in fault and "\n" not in fault)
    assert min(found.values()) > count
