"""Where objects are in images: guards against masks that lie elsewhere than the object does in what the model sees.

Held against pictures of the object itself, which go through the same transform as photographs, and against matplotlib's
polygons; run lengths against what COCO's own tools write.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.models import ResNet18_Weights
from torchvision.transforms.functional import pad

import fxlrp
from fxlrp.errors import InputError, MaskError
from fxlrp.evaluation import ImageFolder
from fxlrp.evaluation.truth.coco import read_coco
from fxlrp.evaluation.truth.shapes import box, counts_of, polygons, runs
from fxlrp.evaluation.truth.voc import read_voc

WIDTH, HEIGHT = 60, 40
LEFT, TOP, RIGHT, BOTTOM = 12, 8, 36, 28
"""The object's edges."""

plain = transforms.ToTensor()


def thing(width=WIDTH, height=HEIGHT):
    """The object, as a mask."""
    mask = np.zeros((height, width), bool)
    mask[TOP:BOTTOM, LEFT:RIGHT] = True
    return mask


def picture(path, mask=None, **options):
    """A picture of the object, white on black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(thing() if mask is None else mask).convert("RGB").save(path, **options)


def padded(image):
    return pad(plain(image.resize((30, 20))), [0, 5], fill=0.5) * 4 - 2


GEOMETRIES = {
    "as it is": plain,
    "torchvision's": ResNet18_Weights.DEFAULT.transforms(crop_size=22, resize_size=24),
    "squashed, bicubic": transforms.Compose([transforms.Resize((30, 20), transforms.InterpolationMode.BICUBIC), plain]),
    "larger": transforms.Compose([transforms.Resize(70), transforms.CenterCrop((64, 90)), plain]),
    "padded": padded,
}


@pytest.fixture
def images(tmp_path):
    picture(tmp_path / "images" / "thing.png")
    return tmp_path / "images"


def voc(path, *objects, size=(WIDTH, HEIGHT)):
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for name, (x0, y0, x1, y1) in objects
    )
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    path.write_text(f"<annotation><filename>any.jpg</filename>{sides}{inside}</annotation>")


CORNERS = (LEFT + 1, TOP + 1, RIGHT, BOTTOM)
"""As Pascal VOC has them: the first pixel is 1, and the last is within."""

OUTLINE = [[LEFT, TOP, RIGHT, TOP, RIGHT, BOTTOM, LEFT, BOTTOM]]


def lengths(mask):
    """Run lengths, pixel by pixel."""
    found, now = [0], False
    for pixel in mask.T.flatten().tolist():
        if pixel != now:
            found.append(0)
            now = pixel
        found[-1] += 1
    return found


def coco(path, *annotations, names=("thing.png",), **image):
    found = {
        "images": [{"id": 7 + i, "file_name": name, **image} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": 7, "category_id": 3, **each} for i, each in enumerate(annotations)],
        "categories": [{"id": 3, "name": "Thing"}, {"id": 4, "name": "other"}],
    }
    path.write_text(json.dumps(found))


def given(kind, folder):
    """What says where the object is."""
    if kind == "mask":
        picture(folder / "masks" / "thing.gif")
    elif kind == "larger mask":
        picture(folder / "masks" / "thing.png", thing().repeat(3, 0).repeat(3, 1))
    elif kind == "voc":
        voc(folder / "boxes" / "thing.xml", ("thing", CORNERS))
    else:
        outline = OUTLINE if kind == "polygon" else {"size": [HEIGHT, WIDTH], "counts": lengths(thing())}
        rectangle = [LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP]
        coco(folder / "coco.json", {"bbox": rectangle, "segmentation": outline}, width=WIDTH, height=HEIGHT)
    place = folder / {"mask": "masks", "larger mask": "masks", "voc": "boxes"}.get(kind, "coco.json")
    return {"boxes" if kind in ("voc", "coco's box") else "masks": place}


@pytest.mark.parametrize("kind", ["mask", "larger mask", "voc", "coco's box", "polygon", "run lengths"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_mask_lies_where_the_object_is_seen(geometry, kind, images, tmp_path):
    x, label, mask = ImageFolder(images, GEOMETRIES[geometry], **given(kind, tmp_path))[0]
    assert label is None
    assert mask.dtype == torch.bool
    assert mask.shape == x.shape[1:]
    # White is the largest value of the picture, whatever it is normalized with; what is padded is no object.
    low, high = (-2, 2) if geometry == "padded" else (x[0].min(), x[0].max())
    expected = x[0] > (low + high) / 2
    assert 0 < expected.sum() < expected.numel()
    assert torch.equal(mask, expected)


def test_an_image_is_turned_upright_and_its_mask_with_it(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # To be turned by 90 degrees.
    picture(tmp_path / "images" / "thing.jpg", quality=95, exif=exif)
    voc(tmp_path / "boxes" / "thing.xml", ("thing", (13, 13, 32, 36)), size=(HEIGHT, WIDTH))
    x, _, mask = ImageFolder(tmp_path / "images", plain, boxes=tmp_path / "boxes")[0]
    assert x.shape == (3, WIDTH, HEIGHT)
    assert torch.equal(mask, x[0] > 0.5)
    voc(tmp_path / "boxes" / "thing.xml", ("thing", CORNERS))
    with pytest.raises(MaskError, match=r"thing\.xml is of an image 60 x 40, .* upright, is 40 x 60"):
        _ = ImageFolder(tmp_path / "images", plain, boxes=tmp_path / "boxes")[0]


def test_polygons_are_matplotlibs():
    path = pytest.importorskip("matplotlib.path")
    rng = np.random.default_rng(0)
    middles = np.stack(np.meshgrid(np.arange(30) + 0.5, np.arange(20) + 0.5), -1).reshape(-1, 2)
    for number in (3, 4, 7):
        # Around a point, so that sides do not cross: there, libraries differ.
        angles, radii = np.sort(rng.uniform(0, 2 * np.pi, number)), rng.uniform(3, 14, number)
        corners = np.stack((15 + radii * np.cos(angles), 10 + radii * np.sin(angles)), 1)
        expected = path.Path(corners).contains_points(middles).reshape(20, 30)
        assert expected.any()
        np.testing.assert_array_equal(polygons([corners.flatten()])(20, 30), expected)
    two = polygons([[1, 1, 5, 1, 5, 5, 1, 5], [3, 3, 9, 3, 9, 9, 3, 9]])(20, 30)
    assert two.sum() == 16 + 36 - 4


def test_run_lengths_in_cocos_text():
    """As COCO's own tools encode it."""
    mask = np.zeros((300, 500), bool)
    mask[100:250, 100:400:50] = True
    mask[:2, 450] = True
    counts = counts_of("d\\m0f4R`>000000000da>\\KPcA")
    assert counts == lengths(mask)
    np.testing.assert_array_equal(runs(counts, 300, 500)(300, 500), mask)


def test_boxes_that_are_broken_off_at_the_images_edge():
    np.testing.assert_array_equal(box(-3, 1.4, 2.6, 99)(4, 5), [[0, 0, 0, 0, 0], *([[1, 1, 1, 0, 0]] * 3)])
    assert not box(7, 0, 9, 4)(4, 5).any()


def test_which_objects_count(tmp_path):
    """Of annotations that name the image's class, those of its name; of others, all."""
    for name in ("cat/one", "dog/one", "dog/two", "other/one"):
        picture(tmp_path / "images" / f"{name}.png")
        objects = [("Cat", (1, 1, 10, 10)), ("dog", (20, 20, 25, 25))]
        voc(tmp_path / "boxes" / f"{name}.xml", *(objects[:1] if name == "dog/two" else objects))
    data = ImageFolder(tmp_path / "images", plain, boxes=tmp_path / "boxes", classes=["cat", "dog"])
    assert [image.as_posix() for image in data.images] == ["cat/one.png", "dog/one.png", "dog/two.png", "other/one.png"]
    assert data.labels == [0, 1, 1, None]
    assert data.masked == 4
    masks = [mask for _, _, mask in data]
    assert [None if mask is None else int(mask.sum()) for mask in masks] == [100, 36, None, 136]


def test_labels_of_sub_folders(tmp_path):
    def labels(*names, classes=("zero", "One", "two words")):
        folder = tmp_path / "-".join(names)
        for name in names:
            picture(folder / name / "a.png")
        return ImageFolder(folder, plain, classes=classes).labels

    assert labels("ONE", "zero") == [1, 0]
    assert labels("0", "2", "two words") == [0, 2, 2]
    assert labels("3", "one", "x") == [None, 1, None]
    assert labels("a", "b") == [None, None]
    # As many as there are classes: in their order, as torchvision's ImageFolder and fxlrp train have them.
    assert labels("n01", "n02", "n09") == [0, 1, 2]
    assert labels("crane", classes=("Crane",)) == [0]
    with pytest.raises(InputError, match="classes 0 and 2 are both called crane: name the folder by the index"):
        labels("crane", classes=("crane", "dog", "crane"))
    picture(tmp_path / "a.png")
    loose = ImageFolder(tmp_path, plain, classes=["a", "b"])
    assert loose.labels[loose.images.index(loose.images[0].__class__("a.png"))] is None


def test_what_belongs_to_an_image(tmp_path):
    for name in ("a/x.png", "a/y.png", "b/x.jpg"):
        picture(tmp_path / "images" / name)
    picture(tmp_path / "same" / "b" / "x.gif")
    picture(tmp_path / "same" / "x.png", ~thing())
    data = ImageFolder(tmp_path / "images", plain, masks=tmp_path / "same")
    assert data.masked == 1
    assert [item[2] is None for item in data] == [True, True, False]
    assert data[2][2].sum() == thing().sum()
    # By the name alone, if the folders are others.
    picture(tmp_path / "flat" / "y.png")
    assert [item[2] is None for item in ImageFolder(tmp_path / "images", plain, masks=tmp_path / "flat")] == [1, 0, 1]
    picture(tmp_path / "flat" / "x.png")
    with pytest.raises(MaskError, match=r"several images, .* are called x: put them in the same folders"):
        ImageFolder(tmp_path / "images", plain, masks=tmp_path / "flat")
    picture(tmp_path / "twice" / "a" / "x.png")
    picture(tmp_path / "twice" / "a" / "x.gif")
    with pytest.raises(MaskError, match=r"two of the same image, a.x: keep one"):
        ImageFolder(tmp_path / "images", plain, masks=tmp_path / "twice")
    picture(tmp_path / "others" / "z.png")
    with pytest.raises(MaskError, match=r"nothing of any of the 3 images: of one, its name would be a.x"):
        ImageFolder(tmp_path / "images", plain, masks=tmp_path / "others")
    coco(tmp_path / "coco.json", {"bbox": [0, 0, 5, 4]}, names=("train/b/x.jpg", "train/a/y.jpg"))
    with pytest.raises(MaskError, match="are called x"):
        ImageFolder(tmp_path / "images", plain, boxes=tmp_path / "coco.json")
    # What belongs to no image is not looked at.
    other = {"bbox": "broken", "image_id": 9}
    coco(tmp_path / "coco.json", {"bbox": [0, 0, 5, 4]}, other, names=("b/x.png", "a/y.png", "a/z.png"))
    items = list(ImageFolder(tmp_path / "images", plain, boxes=tmp_path / "coco.json"))
    assert [None if mask is None else int(mask.sum()) for _, _, mask in items] == [None, None, 20]


def test_so_many_of_the_images(tmp_path):
    for i in range(7):
        picture(tmp_path / f"{i}.png")
    picture(tmp_path / ".hidden.png")
    names = lambda limit: [image.stem for image in ImageFolder(tmp_path, plain, limit=limit).images]
    assert names(None) == names(7) == names(9) == list("0123456")
    assert names(3) == ["0", "2", "4"]
    assert names(1) == ["0"]


def test_a_folder_is_compared(tmp_path):
    for name in ("0/a", "0/b", "1/c"):
        picture(tmp_path / "images" / f"{name}.png")
    picture(tmp_path / "masks" / "0" / "a.png")
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    data = ImageFolder(tmp_path / "images", plain, masks=tmp_path / "masks", classes=["x", "y"])
    own = {"class": lambda model, x, relevance, target, mask: target.float(), "mu": "inside_total_ratio"}
    ways = {"input": lambda x, target: x + 1}
    table = fxlrp.compare(model, data, ways, own, batch_size=2, progress=False)
    assert table.values("class", "input").tolist() == [0, 0, 1]
    inside = 2 * thing().sum() / (thing().sum() + thing().size)
    np.testing.assert_allclose(table.values("inside_total_ratio", "input"), [inside, np.nan, np.nan], rtol=1e-6)


FAULTS = {
    "no folder": ({}, "is not a folder", InputError),
    "nothing in it": ({}, r"has no images \(\.bmp, ", InputError),
    "both": ({"masks": "m", "boxes": "b"}, "masks or boxes, not both", MaskError),
    "no masks": ({"masks": "none"}, "none is not a folder", MaskError),
    "no boxes": ({"boxes": "none"}, "none is not a folder", MaskError),
}


@pytest.mark.parametrize("what", FAULTS)
def test_folders_that_cannot_be_read(what, tmp_path, images):
    given, words, kind = FAULTS[what]
    (tmp_path / "nothing in it").mkdir()
    folder = tmp_path / what if what in ("no folder", "nothing in it") else images
    with pytest.raises(kind, match=words):
        ImageFolder(folder, plain, **{key: tmp_path / value for key, value in given.items()})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no xml", "is no file of Pascal VOC"),
        ("<html></html>", "begins with <html>"),
        ("<annotation><object><name>a</name></object></annotation>", "no bndbox with xmin"),
        ("<annotation><size><width>wide</width></size></annotation>", "is no file of Pascal VOC"),
    ],
)
def test_broken_files_of_pascal_voc(text, words, tmp_path):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(MaskError, match=rf"a\.xml .*{words}"):
        read_voc(tmp_path / "a.xml")


def test_a_size_that_pascal_voc_does_not_know(tmp_path):
    for size in (None, (0, 0)):
        voc(tmp_path / "a.xml", ("a", (1, 1, 2, 2)), size=size)
        assert read_voc(tmp_path / "a.xml").mask(9, 8, ()).sum() == 4


BROKEN = {
    "no json": ("{", "is no file of COCO"),
    "a list": ("[]", "is no file of COCO"),
    "no images": ('{"annotations": []}', "there is no 'images'"),
    "no box": ({"segmentation": OUTLINE}, "there is no 'bbox'"),
    "no outline": ({"bbox": [1, 1, 2, 2]}, "annotation 0 has no segmentation: use its box"),
    "two corners": ({"segmentation": [[1, 1, 2, 2]]}, "three corners"),
    "other lengths": ({"segmentation": {"size": [4, 5], "counts": [3]}}, "4 x 5 pixels are 20"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_of_coco(what, tmp_path):
    text, words = BROKEN[what]
    if isinstance(text, str):
        (tmp_path / "a.json").write_text(text)
    else:
        coco(tmp_path / "a.json", text)
    with pytest.raises(MaskError, match=words):
        read_coco(tmp_path / "a.json", {"thing"}, outlines="box" not in what)


def test_masks_of_another_size(images, tmp_path):
    picture(tmp_path / "masks" / "thing.png", thing(HEIGHT, HEIGHT))
    with pytest.raises(MaskError, match=r"is 40 x 40 and its image 60 x 40"):
        _ = ImageFolder(images, plain, masks=tmp_path / "masks")[0]
    coco(tmp_path / "coco.json", {"segmentation": {"size": [4, 5], "counts": [20]}})
    with pytest.raises(MaskError, match=r"coco\.json, thing\.png: run lengths are of 4 x 5 pixels, .* has 40 x 60"):
        _ = ImageFolder(images, plain, masks=tmp_path / "coco.json")[0]
