"""TensorBoard profiles batches of training, while the servers are busy."""

import keras
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2

import tfps
from tests.conftest import mlp, regression


def summaries(folder):
    """(tag, tensor) of all that TensorFlow's summary writer has written below a folder."""
    files = sorted(str(path) for path in folder.rglob("events.out.tfevents*"))
    events = [e for file in files for e in tf.compat.v1.train.summary_iterator(file)]
    return [(value.tag, value.tensor) for event in events for value in event.summary.value]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_batch_is_profiled(connect, tmp_path, workers):
    x, y = regression(64)
    model = mlp()
    model.compile("sgd", "mse")
    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False, profile_batch=(2, 3))
    tfps.Trainer(model, connect(workers)).fit(x, y, batch_size=8, verbose=0, callbacks=[board])
    ((_, graphs),) = [s for s in summaries(tmp_path / "train") if s[0].startswith("batch_")]
    written = config_pb2.RunMetadata.FromString(graphs.string_val[0])
    nodes = [n.op for g in written.function_graphs for n in g.pre_optimization_graph.node]
    assert "MatMul" in nodes or any(
        n.op == "MatMul"
        for g in written.function_graphs
        for f in g.pre_optimization_graph.library.function
        for n in f.node_def
    )
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


def test_without_busy_servers_tensorflow_exports_as_ever(connect, tmp_path):
    connect()

    @tf.function
    def double(x):
        return 2 * x

    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        tf.summary.trace_on(graph=True, profiler=False)
        double(tf.constant(3.0))
        tf.summary.trace_export("own", step=0)
    ((_, graphs),) = [s for s in summaries(tmp_path) if s[0] == "own"]
    assert config_pb2.RunMetadata.FromString(graphs.string_val[0]).function_graphs
