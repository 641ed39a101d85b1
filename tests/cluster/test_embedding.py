"""Whether servers find threads enough in this process."""

import pytest
import tensorflow as tf

from tfps import _tf
from tfps.cluster import server


@pytest.mark.parametrize(
    ("pool", "connected", "default", "embedded"),
    [
        (None, False, 2, [1, 2, 8, 16, 100]),  # The first cluster makes the pool.
        (None, True, 2, []),  # The chief's own server has made it, with TensorFlow's default.
        (None, True, 64, [1, 2, 8]),
        (128, True, 2, [1, 2, 8, 16]),
        (16, False, 2, [1, 2]),
    ],
)
def test_the_first_server_decides(monkeypatch, pool, connected, default, embedded):
    monkeypatch.setattr(server, "_pool", pool)
    monkeypatch.setattr(_tf, "is_connected", lambda: connected)
    monkeypatch.setattr(tf.config.threading, "get_inter_op_parallelism_threads", lambda: default)
    assert [n for n in (1, 2, 8, 16, 100) if server.can_embed(n)] == embedded
