"""Running a step over a source of batches, inside of a `tf.function`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf


class Stack(NamedTuple):
    """Several batches in one.

    Attributes:
      batches: every tensor of a batch, with the batches along a new first axis.
    """

    batches: Any


# (index of the step, batch, state) -> state.
Step = Callable[[tf.Tensor, Any, Any], Any]


def repeat(
    step: Step,
    source: Any,
    count: tf.Tensor,
    state: Any,
    single: bool,
    conditional: bool = False,
    begin: tf.Tensor | int = 0,
) -> tuple[tf.Tensor, Any]:
    """Runs a step over a source.

    Args:
      step: traced once.
      source: an iterator, one batch, or a `Stack`.
      count: int32 scalar, how many steps to do at most.
      state: nested tensors.
      single: whether the count is always 1, so that no loop is needed.
      conditional: whether to run the step for a lone batch in a conditional.
      begin: int32 scalar, how many of the steps were done before; not for a lone batch.

    Returns:
      (int32 scalar, steps done, with those done before; state).
    """
    if isinstance(source, Stack):
        return _over_stack(step, source, count, state, begin)
    if is_iterator(source):
        if single:
            return _once(step, source, state)
        return _over_iterator(step, source, count, state, begin)
    if not conditional:
        return tf.constant(1), step(tf.constant(0), source, state)
    return tf.cond(
        count > 0,
        lambda: (tf.constant(1), step(tf.constant(0), source, state)),
        lambda: (tf.constant(0), state),
    )


def _over_stack(step: Step, stack: Stack, count, state, begin):
    def body(i, state):
        # A part that a batch does not have, such as sample weights, is None.
        batch = tf.nest.map_structure(lambda t: None if t is None else t[i], stack.batches)
        return i + 1, step(i, batch, state)

    return tf.while_loop(
        lambda i, _: i < count,
        body,
        [tf.convert_to_tensor(begin), state],
        parallel_iterations=1,
    )


# The end of an iterator is asked for instead of run into: no update may be under way in a call that
# ends with an error.


def _once(step: Step, iterator: tf.data.Iterator, state):
    element = iterator.get_next_as_optional()
    return tf.cond(
        element.has_value(),
        lambda: (tf.constant(1), step(tf.constant(0), element.get_value(), state)),
        lambda: (tf.constant(0), state),
    )


def _over_iterator(step: Step, iterator: tf.data.Iterator, count, state, begin):
    def more(i, state, element):
        return tf.logical_and(i < count, element.has_value())

    def body(i, state, element):
        state = step(i, element.get_value(), state)
        # The element after the last step is left for the next call.
        element = tf.cond(i + 1 < count, iterator.get_next_as_optional, lambda: element)
        return i + 1, state, element

    first = iterator.get_next_as_optional
    if isinstance(begin, tf.Tensor):
        nothing = functools.partial(tf.experimental.Optional.empty, iterator.element_spec)
        first = functools.partial(tf.cond, begin < count, first, nothing)
    done, state, _ = tf.while_loop(
        more, body, [tf.convert_to_tensor(begin), state, first()], parallel_iterations=1
    )
    return done, state


def next_of(source: Any, spec: Any, wanted: tf.Tensor, otherwise: Any) -> tuple[Any, tf.Tensor]:
    """The next batch of a source, without a condition for what follows.

    Args:
      source: an iterator, or one batch.
      spec: of a batch, which `is_plain`.
      wanted: bool scalar; false leaves an iterator as it is.
      otherwise: what to return where there is no next batch.

    Returns:
      (batch, bool scalar: whether there was a next batch).
    """
    if not is_iterator(source):
        return source, wanted
    element = tf.cond(
        wanted, source.get_next_as_optional, lambda: tf.experimental.Optional.empty(spec)
    )
    exists = element.has_value()
    return tf.cond(exists, element.get_value, lambda: otherwise), exists


def is_plain(spec: Any) -> bool:
    """Whether batches of this spec consist of nothing but tensors of known rank."""
    return all(
        isinstance(s, tf.TensorSpec) and s.shape.rank is not None for s in tf.nest.flatten(spec)
    )


def is_iterator(source: Any) -> bool:
    """Whether the source is an iterator on the worker."""
    return isinstance(source, tf.data.Iterator)
