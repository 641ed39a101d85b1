"""The chief's copy of what is on the servers: the Keras variables of a model and its optimizer.

Outside of `fit` the Keras variables are the truth, and what was changed in them is taken to the
servers. While `fit` runs the truth is on the servers, and the Keras variables follow: a value is
brought when somebody looks at it, and what somebody has changed is taken to the servers after the
hook. So the chief holds no slots of the optimizer then, unless somebody looks at them.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfps import _keras_optimizers, _keras_variables as contents, errors
from tfps.store.columns import Source

# s that fetching may take after an error.
RESCUE = 120.0


class Link:
    """A Keras variable, and where its value is on the servers.

    It is what the variable follows; see `_keras_variables.Followed`.

    Attributes:
      variable: the Keras variable.
      source: of its value.
      index: of the value in the source.
      is_slot: whether the variable is state of the optimizer, which takes no memory while `fit`
        runs.
      noted: the value that the servers have, as far as the chief knows; None if the chief does not
        know it.
      age: of the servers when the variable was filled; -1 if the variable is not filled.
      is_dirty: whether somebody has assigned a value that the servers do not have yet.
    """

    def __init__(
        self, copy: "ModelCopy", variable: keras.Variable, source: Source, index: int, is_slot: bool
    ):
        """See the attributes."""
        self.variable, self.source, self.index, self.is_slot = variable, source, index, is_slot
        self.noted: tf.Tensor | None = None
        self.age = -1
        self.is_dirty = False
        self._copy = copy

    def look(self) -> None:
        """Fills the variable."""
        self._copy.look(self)

    def written(self, value: tf.Tensor) -> None:
        """Fills the variable with a value of somebody's own."""
        self._copy.written(self, value)

    def note(self) -> None:
        """Notes that the servers have the value that the variable has."""
        self.noted = contents.tensor(self.variable)

    @property
    def is_filled(self) -> bool:
        """Whether the variable has a value at all; slots may have none before the first `fit`."""
        return contents.content(self.variable) is not None

    def is_changed(self) -> bool:
        """Whether the servers have another value than the variable, as far as the chief knows."""
        if self.noted is None or self.source.is_replaced:
            return True
        return not _same(contents.tensor(self.variable), self.noted)


class ModelCopy:
    """The Keras variables of a model and its optimizer, beside the servers.

    Attributes:
      is_following: whether the servers are the truth.
      is_lost: whether slots could not be fetched after an error. What is on the servers is then of
        no more use.
      writes: how often something that was changed on the chief was taken to the servers.
      ask: calls a function that reads or writes what is on the servers, and returns what the
        function returns. It may give up waiting for a server.
    """

    def __init__(self, optimizers: Sequence[keras.optimizers.Optimizer]):
        """Starts without variables.

        Args:
          optimizers: of the model, without what is inside of them; empty for evaluation alone.
        """
        self.is_following = self.is_lost = False
        self.writes = 0
        self.ask: Callable[[Callable[[], Any]], Any] = lambda function: function()
        self._optimizers = optimizers
        self._links: dict[int, Link] = {}  # `id` of a Keras variable -> its link
        self._of_source: dict[tuple[int, int], Link] = {}  # (`id` of a source, index) -> its link
        self._age, self._fetched = 0, -1
        self._looked: dict[Link, None] = {}  # what may have been changed since the last hook
        self._filled: dict[Link, None] = {}  # slots that take memory
        self._captured: dict[Link, None] = {}  # what is read by functions that do not ask
        # Callbacks may have threads.
        self._lock = threading.RLock()

    def add(
        self, variable: keras.Variable, source: Source, index: int = 0, is_slot: bool = False
    ) -> None:
        """Adds a Keras variable, unless it is there already.

        Args:
          variable: of the model or of its optimizer.
          source: of its value.
          index: of the value in the source.
          is_slot: see `Link`.
        """
        if id(variable) not in self._links:
            link = Link(self, variable, source, index, is_slot)
            self._links[id(variable)] = self._of_source[id(source), index] = link

    def has(self, variable: keras.Variable) -> bool:
        """Whether `add` was called for a variable."""
        return id(variable) in self._links

    def load_if_changed(self) -> bool:
        """Takes what was changed on the chief to the servers.

        While the variables follow, only those that somebody has looked at are compared, and slots
        are dropped again. Variables that follow another copy, within the `fit` of another Trainer,
        are brought by that copy first.

        Returns:
          Whether anything was changed.
        """
        with self._lock:
            links = list(self._links.values())
            if self.is_following:  # What was never brought, such as a held slot, has no value.
                links = [link for link in self._looked if link.age != -1]
            else:
                for link in links:
                    contents.bring(link.variable)
            changed = [link for link in links if link.is_filled and link.is_changed()]
            self._take(changed)
            self.writes += bool(changed)
            if self.is_following:
                self._looked = dict(self._captured)
                self._drop_slots()
            return bool(changed)

    def fetch(self) -> None:
        """Brings everything from the servers."""
        with self._lock:
            self._age += 1
            for link in self._links.values():
                self._bring(link)
            self._fetched = self._age

    def forget(self) -> None:
        """Makes the next `load_if_changed` load: the servers have moved on without the model."""
        for link in self._links.values():
            link.noted = None

    # While the variables follow.

    @contextlib.contextmanager
    def following(
        self, answers: Callable[[BaseException], bool], recount: Callable[[], None]
    ) -> Iterator[None]:
        """A context in which the servers are the truth, and the variables follow.

        It is entered when the servers have what the variables have; variables that are not filled
        have whatever the servers have. At the end everything is fetched.

        Args:
          answers: whether the servers still answer after an error. If not, the weights are left as
            they were last looked at, and the optimizer is to be built anew.
          recount: counts the updates on the servers. After an error the chief may know of fewer,
            because reports of calls were lost.

        Raises:
          ConfigError: a variable follows the servers of another copy.
        """
        for link in self._links.values():
            if contents.follows_another(link.variable):
                raise errors.ConfigError(
                    f"{link.variable.path} is being trained by the fit of another Trainer, and a "
                    "variable can be in one fit at a time; call this fit when that one has ended, "
                    "not in a hook of its callbacks"
                )
        self.is_following = True
        for link in self._links.values():
            contents.follow(link.variable, link)
            link.age = self._age if link.is_filled else -1
            if link.is_filled and link.is_slot:
                self._filled[link] = None
        self._drop_slots()
        self._fetched = -1
        try:
            yield
            if self._fetched != self._age:  # Otherwise `fit` has fetched what it ended with.
                self.fetch()
        except BaseException as error:
            if answers(error):
                self._rescue(recount)
            # Calls that are under way may still push.
            self.forget()
            raise
        finally:
            self.is_following = False
            self._looked, self._filled, self._captured = {}, {}, {}
            for link in self._links.values():
                contents.unfollow(link.variable)
            if self.is_lost or any(link.age == -1 for link in self._links.values()):
                self._abandon()

    def _rescue(self, recount: Callable[[], None]) -> None:
        """Fetches everything after an error, unless a server hangs."""

        def fetch():
            with contextlib.suppress(Exception):
                recount()
                self.fetch()
            done.set()

        # Whoever interrupts `fit` because a server hangs must not wait for this server again.
        done = threading.Event()
        threading.Thread(target=fetch, name="tfps-rescues", daemon=True).start()
        self.is_lost = not done.wait(RESCUE)

    def _abandon(self) -> None:
        """Lets the optimizer start afresh, because not all of its slots could be fetched."""
        self.is_lost = True
        for optimizer in self._optimizers:
            _keras_optimizers.unbuild(optimizer)

    def discard(self) -> None:
        """Lets go of what was assigned since the last hook and is not on the servers yet."""
        with self._lock:
            for link in self._looked:
                if link.is_dirty:
                    link.is_dirty, link.age = False, -1

    def outdate(self) -> None:
        """Notes that the servers have moved on."""
        self._age += 1

    @contextlib.contextmanager
    def hook(self, whole: bool = False, captured: bool = True) -> Iterator[None]:
        """A context for hooks of callbacks, which may look at variables and change them.

        Args:
          whole: whether everything but slots is brought before, for callbacks that may look in
            ways that nobody notices.
          captured: whether what `capture` has found, and traced functions read, is brought before.
        """
        if self.is_following:
            with self._lock:
                links = dict(self._captured) if captured else {}
                if whole:
                    links.update((v, None) for v in self._links.values() if not v.is_slot)
                for link in links:
                    self._bring(link)
                    self._looked[link] = None
        yield
        if self._looked or not self.is_following:
            self.load_if_changed()

    def capture(
        self, find: Callable[[list[keras.Variable]], list[keras.Variable]], slots: bool = False
    ) -> None:
        """Notes which variables may be read without asking: by traced functions, or directly.

        Args:
          find: gives those of the variables that may.
          slots: whether slots of the optimizer may be among them.
        """
        links = [link for link in self._links.values() if slots or not link.is_slot]
        found = find([link.variable for link in links])
        self._captured.update((self._links[id(v)], None) for v in found)

    def look(self, link: Link) -> None:
        """Somebody is about to use a variable."""
        with self._lock:
            if not tf.executing_eagerly():
                # The function that is being traced will read the variable again without asking.
                self._captured[link] = None
            self._bring(link)
            self._looked[link] = None

    def written(self, link: Link, value: tf.Tensor) -> None:
        """Somebody assigns a value to a variable."""
        with self._lock:
            contents.fill(link.variable, value)
            link.noted, link.age, link.is_dirty = None, self._age, True
            self._looked[link] = None
            if link.is_slot:
                self._filled[link] = None

    # With the lock held.

    def _bring(self, wanted: Link) -> None:
        if wanted.age == self._age or wanted.is_dirty:
            return
        values = self.ask(lambda: wanted.source.read(wanted.index))
        if self.is_lost:
            return
        for i, value in values.items():
            link = self._of_source.get((id(wanted.source), i))
            # What somebody has assigned since the servers moved on is left alone.
            if link is not None and link.age != self._age and not link.is_dirty:
                contents.fill(link.variable, value)
                link.age = self._age
                link.note()
                if link.is_slot:
                    self._filled[link] = None

    def _take(self, links: Iterable[Link]) -> None:
        values: dict[int, dict[int, np.ndarray]] = {}
        sources = {id(link.source): link.source for link in links}
        for link in links:
            # Of a tensor, `asarray` makes no copy and `numpy` does.
            value = np.asarray(contents.tensor(link.variable))
            values.setdefault(id(link.source), {})[link.index] = value
        for name, source in sources.items():
            write = functools.partial(source.write, values[name], busy=self.is_following)
            self.ask(write)
        for link in links:
            link.note()
            link.is_dirty = False

    def _drop_slots(self) -> None:
        for link in [link for link in self._filled if link not in self._captured]:
            contents.drop(link.variable)
            link.noted, link.age = None, -1
            del self._filled[link]


def _same(a: tf.Tensor, b: tf.Tensor) -> bool:
    x, y = np.asarray(a), np.asarray(b)
    if x.shape == y.shape and x.ctypes.data == y.ctypes.data:
        return True  # They share memory: nobody has written since.
    # NaN equals NaN here. The comparison that says so takes longer, so it comes second.
    return np.array_equal(x, y) or np.array_equal(x, y, equal_nan=True)
