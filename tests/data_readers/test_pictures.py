"""Any file that a person may call a picture: decoded right, or refused by name."""

import io

import numpy as np
import pytest
from PIL import Image

import dicenet
from dicenet.data.pictures import find_pictures, read_picture
from dicenet.data.transforms import Preprocessing, evaluation_transform, resized_and_cropped

REFUSED = {
    "truncated.jpg": "damaged or cut off",
    "truncated_header.jpg": "damaged or cut off|not a picture",
    "text.jpg": "not a picture",
    "empty.jpg": "the file is empty",
    "bad_crc.png": "damaged or cut off",
    "huge_header.png": "megapixels: refused",
}
READ = {
    "cmyk.jpg": (160, 120),
    "grey.jpg": None,
    "exif_rotated.jpg": (160, 120),
    "grey16.png": None,
    "palette_transparent.png": None,
    "rgba.png": None,
    "one_bit.png": None,
    "one_pixel.png": (1, 1),
    "one_row.png": (300, 1),
    "animated.gif": None,
    "picture.webp": None,
    "jpeg_named.png": None,
}


def test_every_bad_picture_is_tested(shared):
    files = {path.name for path in shared("data/bad_images").iterdir()} - {"README.md"}
    assert files == {*REFUSED, *READ}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(shared, name):
    path = shared("data/bad_images") / name
    with pytest.raises(dicenet.DataError, match=REFUSED[name]) as caught:
        read_picture(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(dicenet.DataError, match=r"^in an archive: "):
        read_picture(path.read_bytes(), "in an archive")


@pytest.mark.parametrize("name", READ)
def test_read(shared, name):
    picture = read_picture(shared("data/bad_images") / name)
    assert picture.mode == "RGB"
    assert READ[name] in (None, picture.size)
    for size in ((224, 224), (32, 64)):
        assert evaluation_transform(Preprocessing(size))(picture).shape == (3, *size)


def test_sixteen_bits_are_scaled(shared):
    path = shared("data/bad_images/grey16.png")
    with Image.open(path) as picture:
        stored = np.asarray(picture).astype(np.int64)
    assert (stored.min(), stored.max()) == (0, 65535)
    values = np.asarray(read_picture(path)).astype(np.int64)
    for channel in range(3):
        np.testing.assert_array_equal(values[..., channel], np.round(stored / 257))


def test_one_bit_is_black_and_white(shared):
    assert set(np.unique(np.asarray(read_picture(shared("data/bad_images/one_bit.png"))))) == {0, 255}


@pytest.mark.parametrize(
    ("kind", "scale"), [(np.float32, 1e-3), (np.float32, 1e9), (np.int32, 20), (np.int32, 190_000_000)]
)
def test_pictures_without_a_fixed_range_take_their_own(tmp_path, kind, scale):
    ramp = (np.arange(12).reshape(3, 4) * scale).astype(kind)
    Image.fromarray(ramp).save(tmp_path / "ramp.tif")
    values = np.asarray(read_picture(tmp_path / "ramp.tif"))[..., 0]
    np.testing.assert_array_equal(values, np.round(np.arange(12).reshape(3, 4) * 255 / 11))


def test_values_that_are_no_numbers(tmp_path):
    Image.fromarray(np.array([[0, np.nan, np.inf, 2]], dtype=np.float32)).save(tmp_path / "nan.tif")
    assert np.asarray(read_picture(tmp_path / "nan.tif"))[0, :, 0].tolist() == [0, 0, 255, 255]


def test_palette(tmp_path):
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert read_picture(tmp_path / "palette.png").getpixel((0, 0)) == (200, 100, 50)


def test_pictures_of_a_folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in find_pictures([tmp_path])] == ["a.jpg", "b.PNG", "sub/c.webp"]
    assert find_pictures([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]  # named by the user: tried
    with pytest.raises(dicenet.DataError, match="does not exist"):
        find_pictures([tmp_path / "nothing"])
    (tmp_path / "void").mkdir()
    with pytest.raises(dicenet.DataError, match="no pictures in"):
        find_pictures([tmp_path / "void"])


@pytest.mark.parametrize("size", [(341, 256), (256, 256), (500, 375), (100, 300), (257, 999)])
def test_evaluation_transform_equals_torchvision(size):
    """For a square input: resize of the shorter side to int(224 / 0.875), then the centre."""
    from torchvision.transforms import v2

    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    expected = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])(picture)
    assert np.array_equal(np.asarray(resized_and_cropped(picture, Preprocessing())), np.asarray(expected))


def test_normalisation():
    """The mean and deviation are those of the official code: a known pixel by hand."""
    tensor = evaluation_transform(Preprocessing((32, 32)))(Image.new("RGB", (40, 40), (255, 0, 51)))
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(tensor[:, 5, 7].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_bytes_never_escape(kind):
    """Any damage is either not noticed by the decoder or refused with our error, nothing else."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(content, kind)
    whole = content.getvalue()
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        for position in generator.integers(0, len(whole), 4):
            damaged[position] = generator.integers(0, 256)
        try:
            read_picture(bytes(damaged[: generator.integers(1, len(whole) + 1)]), "damaged")
        except dicenet.DataError:
            refused += 1
    assert refused > 10
