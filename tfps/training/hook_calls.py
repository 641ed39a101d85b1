"""What becomes of the hooks of callbacks when a lost server interrupts what they belong to."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from tfps import errors
from tfps.store.model_copy import ModelCopy
from tfps.training.snapshotter import GoneBack

# The types of an attribute that is copied by noting it.
_PLAIN = bool, int, float, complex, str, bytes, type(None)


class HookCalls:
    """Which callbacks had a hook called when an error interrupted it.

    A hook that looks at the model asks the servers, and one of these may be lost just then. When
    the hook is called again, the callbacks that had it called are left out.
    """

    def __init__(self, callbacks: keras.callbacks.CallbackList):
        """Nothing has been interrupted.

        Args:
          callbacks: as Keras calls them.
        """
        self._callbacks = callbacks
        self._interrupted: dict[tuple[str, int], int] = {}  # (hook, index) -> callbacks that had it

    def is_open(self, name: str, index: int) -> bool:
        """Whether a hook was interrupted, and not called again."""
        return (name, index) in self._interrupted

    def call(self, name: str, index: int, hook: Callable[[], None]) -> None:
        """Calls a hook of all callbacks, or of those that are left.

        Args:
          name: of the hook.
          index: of its epoch.
          hook: has the list of callbacks call it.
        """
        every = self._callbacks.callbacks
        done = self._interrupted.get((name, index), 0)
        told = _Told(every[done:])
        self._callbacks.callbacks = told
        self._interrupted[name, index] = done
        try:
            hook()
        finally:
            self._interrupted[name, index] = done + told.done
            self._callbacks.callbacks = every

    def end(self, name: str, index: int) -> None:
        """Notes that what follows a hook has been done, too."""
        self._interrupted.pop((name, index), None)


@contextlib.contextmanager
def forgotten_if_interrupted(
    callbacks: Sequence[keras.callbacks.Callback], copy: ModelCopy
) -> Iterator[None]:
    """A context for a validation, which begins anew, with its hooks, when a server was lost in it.

    A callback may note in an attribute what it has done at the beginning and will undo at the end:
    `keras.callbacks.SwapEMAWeights` notes that the averages are in the model. With the lost server
    that is undone. So numbers, texts and truth values that are attributes of callbacks are then
    what they were before the context, and what a hook has assigned is dropped.

    Args:
      callbacks: whose hooks are called in the context.
      copy: of what is on the servers.
    """
    noted = [
        (one, {name: v for name, v in vars(one).items() if isinstance(v, _PLAIN)})
        for one in callbacks
    ]
    try:
        yield
    except (errors.TaskLost, GoneBack, tf.errors.OpError):
        for one, attributes in noted:
            vars(one).update(attributes)
        copy.discard()
        raise


class _Told(list):
    """A list that knows how many of its elements have been dealt with.

    Attributes:
      done: the number.
    """

    done = 0

    def __iter__(self) -> Iterator:
        for i, one in enumerate(super().__iter__()):
            self.done = i
            yield one
            self.done = i + 1
