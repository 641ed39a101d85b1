"""Running a step over a source of batches, inside of a `tf.function`."""

import functools
from typing import Any, NamedTuple

import tensorflow as tf


class Stack(NamedTuple):
    """Several batches in one: every tensor has them along a new first axis."""

    batches: Any


def repeat(step, source, count, state, single, conditional=False, begin=0):
    """Runs `step(i, batch, state) -> state` over a source.

    Args:
      step: traced once.
      source: an iterator, one batch, or a `Stack`.
      count: int32 scalar, steps to do at most.
      state: nested tensors.
      single: the count is always 1: no loop is needed.
      conditional: run the step for a lone batch in a conditional.
      begin: int32 scalar, of these steps, how many were done before; they are not
        of a lone batch.

    Returns:
      (steps done, those before included; state).
    """
    if isinstance(source, Stack):

        def body(i, state):
            # What a batch does not have, sample weights say, is None.
            batch = tf.nest.map_structure(lambda t: None if t is None else t[i], source.batches)
            return i + 1, step(i, batch, state)

        return tf.while_loop(
            lambda i, _: i < count,
            body,
            [tf.convert_to_tensor(begin), state],
            parallel_iterations=1,
        )
    if not is_iterator(source):
        if not conditional:
            return tf.constant(1), step(tf.constant(0), source, state)
        return tf.cond(
            count > 0,
            lambda: (tf.constant(1), step(tf.constant(0), source, state)),
            lambda: (tf.constant(0), state),
        )
    # The end of an iterator is asked for, not run into: no update may be under way
    # in a call that ends with an error.
    if single:
        element = source.get_next_as_optional()

        def once():
            return tf.constant(1), step(tf.constant(0), element.get_value(), state)

        return tf.cond(element.has_value(), once, lambda: (tf.constant(0), state))

    def more(i, state, element):
        return tf.logical_and(i < count, element.has_value())

    def body(i, state, element):
        state = step(i, element.get_value(), state)
        # The element after the last step is left for the next call.
        element = tf.cond(i + 1 < count, source.get_next_as_optional, lambda: element)
        return i + 1, state, element

    first = source.get_next_as_optional
    if isinstance(begin, tf.Tensor):
        nothing = functools.partial(tf.experimental.Optional.empty, source.element_spec)
        first = functools.partial(tf.cond, begin < count, first, nothing)
    done, state, _ = tf.while_loop(
        more, body, [tf.convert_to_tensor(begin), state, first()], parallel_iterations=1
    )
    return done, state


def is_plain(spec) -> bool:
    """Whether batches consist of nothing but tensors of known rank."""
    return all(
        isinstance(s, tf.TensorSpec) and s.shape.rank is not None for s in tf.nest.flatten(spec)
    )


def next_of(source, spec, wanted, otherwise) -> tuple[Any, tf.Tensor]:
    """The next batch of a source without a condition for what follows.

    Args:
      source: an iterator, or one batch.
      spec: of a batch, which `is_plain`.
      wanted: bool scalar; false: leave an iterator as it is.
      otherwise: what to return where there is no next batch.

    Returns:
      (batch, bool scalar: whether it is one).
    """
    if not is_iterator(source):
        return source, wanted
    element = tf.cond(
        wanted, source.get_next_as_optional, lambda: tf.experimental.Optional.empty(spec)
    )
    exists = element.has_value()
    return tf.cond(exists, element.get_value, lambda: otherwise), exists


def blank(specs):
    """Zeros in the form of specs; dimensions that are not known are 0."""
    return tf.nest.map_structure(lambda s: tf.zeros([n or 0 for n in s.shape], s.dtype), specs)


def is_iterator(source) -> bool:
    """Whether the source is an iterator on the worker."""
    return isinstance(source, tf.data.Iterator)
