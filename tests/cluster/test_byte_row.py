"""Small tensors as a row of bytes, and back."""

import numpy as np
import pytest
import tensorflow as tf

from tfps.cluster.byte_row import _DTYPES, ByteRow


def row(packing: ByteRow, tensors: list) -> np.ndarray:
    return tf.function(lambda: packing.pack(tensors))().numpy()


@pytest.mark.parametrize("dtype", sorted(_DTYPES, key=lambda d: d.name), ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,)], ids=str)
def test_what_is_packed_is_unpacked(dtype, shape):
    bits = np.random.default_rng(0).integers(0, 2, shape)
    tensors = [tf.cast(bits, dtype), tf.constant([True, False]), tf.cast(1 - bits, dtype)]
    packing = ByteRow(tensors)
    packed = row(packing, tensors)
    assert packed.dtype == np.uint8
    assert packed.shape == (packing.width,)
    np.testing.assert_array_equal(packed, packing.pack_numpy([t.numpy() for t in tensors]))
    in_graph = [t.numpy() for t in tf.function(packing.unpack)(packed)]
    for unpacked in (packing.unpack_numpy(packed), in_graph):
        for before, after in zip(tensors, unpacked, strict=True):
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, before.numpy(), strict=True)


def test_every_bit_stays():
    rng = np.random.default_rng(1)
    tensors = [tf.constant(rng.normal(size=[4, 2])), tf.constant([np.nan, -0.0, np.inf])]
    after = ByteRow(tensors).unpack_numpy(row(ByteRow(tensors), tensors))
    assert [x.tobytes() for x in after] == [t.numpy().tobytes() for t in tensors]


@pytest.mark.parametrize(("used", "width"), [(1, 1), (3, 4), (4, 4), (129, 256), (256, 256)])
def test_few_widths_serve_all(used, width):
    assert ByteRow([tf.TensorSpec([used], tf.uint8)]).width == width


@pytest.mark.parametrize(
    ("specs", "fit"),
    [
        ([tf.TensorSpec([])], True),
        ([tf.TensorSpec([63]), tf.TensorSpec([1])], True),
        ([tf.TensorSpec([64]), tf.TensorSpec([1])], False),
        ([], False),
        ([tf.TensorSpec([]), tf.TensorSpec([], tf.string)], False),
        ([tf.TensorSpec([], tf.qint8)], False),
        ([tf.TensorSpec([None])], False),
        ([tf.TensorSpec(None)], False),
    ],
)
def test_what_fits(specs, fit):
    assert ByteRow.fits(specs) is fit
