import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfps
from tfps import _keras_data
from tfps.training.chief_pass import Pass
from tfps.training.context import Context
from tfps.training.input import feed_of
from tfps.training.lookahead import Lookahead
from tfps.worker.batch_loop import Stack


def drain(feed, workers=2):
    """Takes everything in turn, as if each worker used all it was given."""
    feed.begin_epoch()
    taken = []
    while True:
        works = [(w, feed.take(w)) for w in range(workers)]
        works = [(w, work) for w, work in works if work is not None]
        if not works:
            break
        for w, work in works:
            for part in work.steps:
                batches = part.source.batches if isinstance(part.source, Stack) else part.source
                taken.append((w, part.count, batches))
            feed.done(w, work, work.count)
    feed.end_epoch()
    return taken


def inputs(batch):
    return batch[0] if isinstance(batch, tuple) else batch


def column(n):
    return np.arange(float(n))[:, None]


def chief(x, **args):
    return feed_of(x, 2, args.pop("steps", None), args.pop("group", 1), **args)


def test_every_batch_once_and_in_order():
    feed = chief(column(10), batch_size=4, shuffle=False)
    assert feed.num_batches == 3
    for _ in range(2):
        parts = [inputs(batch).numpy() for _, _, batch in drain(feed)]
        assert [len(p) for p in parts] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate(parts), column(10))


def test_batches_of_one_shape_travel_as_a_stack():
    feed = chief(column(11), batch_size=2, shuffle=False, group=3)
    stacks = [(count, tuple(inputs(batch).shape)) for _, count, batch in drain(feed)]
    assert stacks == [(3, (3, 2, 1)), (2, (2, 2, 1)), (1, (1, 1, 1))]


def test_a_call_may_have_batches_of_several_shapes():
    feed = chief(column(11), batch_size=2, shuffle=False, group=8)
    feed.begin_epoch()
    work = feed.take(0)
    assert work.count == 6 and [part.count for part in work.parts] == [5, 1]
    assert feed.take(0) is None
    feed.regroup(8, alike=True)  # Not where a call is one exchange of local steps.
    feed.begin_epoch()
    assert [feed.take(0).count for _ in range(2)] == [5, 1]


def test_an_epoch_has_whole_calls_as_in_keras():
    feed = chief(column(10), batch_size=1, shuffle=False, steps=5, group=2)
    assert feed.num_batches == 5
    assert [count for _, count, _ in drain(feed)] == [2, 2, 2]
    with pytest.warns(UserWarning, match="ended after 4 of 5 batches"):
        assert [count for _, count, _ in drain(feed)] == [2, 2]


def test_steps_per_epoch_goes_on_where_the_last_epoch_ended():
    feed = chief(column(8), batch_size=2, shuffle=False, steps=3)
    assert [inputs(batch).numpy()[0, 0] for _, _, batch in drain(feed)] == [0, 2, 4]
    with pytest.warns(UserWarning, match="ended after 1 of 3 batches"):
        drain(feed)
    assert len(drain(feed)) == 3


def test_data_that_ends_within_a_group_ends_the_epoch():
    feed = chief(column(10), batch_size=2, shuffle=False, steps=10, group=8)
    with pytest.warns(UserWarning, match="ended after 5 of 10 batches"):
        assert sum(count for _, count, _ in drain(feed)) == 5


def test_exactly_used_up_data_begins_anew():
    feed = chief(column(6), batch_size=2, shuffle=False, steps=3)
    assert len(drain(feed)) == len(drain(feed)) == 3


def test_missing_parts_are_none():
    feed = chief(np.zeros([4, 2]), y=np.zeros([4, 1]), batch_size=2)
    assert feed.batch_spec[0].shape[1:] == [2]
    assert len(feed.batch_spec) == 2 or feed.batch_spec[2] is None
    x, y = drain(feed)[0][2][:2]
    assert (x.shape, y.shape) == ((2, 2), (2, 1))


def test_context_shards():
    parts = [Context(i, 3).shard("abcdefgh") for i in range(3)]
    assert parts == [["a", "d", "g"], ["b", "e", "h"], ["c", "f"]]
    with pytest.raises(tfps.DataError, match="2 item"):
        Context(0, 3).shard("ab")


def test_worker_feed(connect):
    connect(workers=2)

    def dataset_fn(context):
        return tf.data.Dataset.range(3).map(lambda i: i + 10 * context.worker_index).batch(1)

    feed = feed_of(dataset_fn, 2, None, 2)
    feed.begin_epoch()
    first, second = feed.take(0), feed.take(1)
    assert (first.count, second.count) == (2, 2)
    assert "task:1" in second.source._iterator_resource.device
    feed.done(0, first, 1)  # It had one batch only.
    assert feed.take(0) is None
    assert feed.take(1) is not None


def test_worker_feed_leases_steps_of_an_epoch(connect):
    connect(workers=2)
    feed = feed_of(lambda c: tf.data.Dataset.range(100).batch(1), 2, 5, 2)
    feed.begin_epoch()
    works = [feed.take(w) for w in (0, 1, 0)]
    assert [work.count for work in works] == [2, 2, 1]
    assert feed.take(1) is None
    feed.done(0, works[0], 1)  # One was not used: it is leased again.
    assert feed.take(1).count == 1


def test_lookahead_over_batches_of_the_chief():
    feed = chief(column(10), batch_size=4, shuffle=False)
    feed.begin_epoch()
    ahead = Lookahead(feed, 2, ended=lambda: False)
    held, trained = [None, None], []
    for w in (0, 1, 0, 1, 1, 0):
        work = ahead.take(w)
        if work is None:
            trained.append(f"worker {w} is done")
            continue
        if work.count:
            trained.append((w, float(held[w])))
        held[w] = inputs(work.source)[0, 0] if work.takes else None
        ahead.done(w, work, work.takes)
    # Batches begin with 0, 4 and 8; worker 0 took the first and the last.
    assert trained == [(0, 0.0), (1, 4.0), "worker 1 is done", (0, 8.0)]
    assert ahead.take(0) is None


def test_lookahead_ends_with_what_the_workers_hold():
    feed = chief(column(10), batch_size=1, shuffle=False)
    feed.begin_epoch()
    ended = []
    ahead = Lookahead(feed, 2, ended=lambda: bool(ended))
    first = ahead.take(0)
    assert (first.count, first.takes) == (0, 1)
    ahead.done(0, first, 1)
    ended.append(True)
    assert ahead.take(1) is None
    last = ahead.take(0)
    assert (last.count, last.takes) == (1, 0)
    assert inputs(last.source).shape == inputs(first.source).shape  # It stands for a batch.
    ahead.done(0, last, 0)
    assert ahead.take(0) is None
    assert inputs(feed.take(0).source)[0, 0] == 1.0  # The next policy goes on from here.


def test_lookahead_begins_anew_where_a_dataset_of_a_worker_ends(connect):
    connect()
    feed = feed_of(lambda c: tf.data.Dataset.range(2).batch(1), 1, 3, 1)
    feed.begin_epoch()
    ahead = Lookahead(feed, 1, ended=lambda: False)
    # What the worker finds when it asks its dataset: two batches, the end, again a batch.
    for count, takes, taken in ((0, 1, 1), (1, 1, 1), (1, 1, 0), (0, 1, 1), (1, 0, 0)):
        work = ahead.take(0)
        assert (work.count, work.takes) == (count, takes)
        ahead.done(0, work, taken)
    assert ahead.take(0) is None


def test_an_iterator_that_takes_long_to_end_does_so_elsewhere():
    ended, go = threading.Event(), threading.Event()

    class Slow:
        def __iter__(self):
            return self

        def __next__(self):
            raise StopIteration

        def __del__(self):
            go.wait(10)
            ended.set()

    made = Pass(tf.data.Dataset.range(0))
    made._own[:] = [Slow()]
    del made
    assert not ended.is_set()
    go.set()
    assert ended.wait(10)


def test_threads_that_read_while_a_pass_begins_see_its_order():
    """What a `PyDataset` does at the beginning of an epoch may take a while."""
    seen = []

    class Noting(keras.utils.PyDataset):
        @property
        def num_batches(self):
            seen.append(indexed[3] if indexed else None)  # As another thread would.
            return 10

        def __getitem__(self, index):
            return index

    indexed = None
    indexed = _keras_data.Indexed(Noting(), 3)
    order = [indexed[i] for i in range(10)]
    seen.clear()
    indexed.begin(0, 0)
    assert seen == [order[3]]
