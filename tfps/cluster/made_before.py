"""What a process made before it connected to a cluster, and how it goes on afterwards."""

import tensorflow as tf

from tfps import _tf, _tf_resources

# What tfps has carried over lives since then, at the earliest. What is older may have ended.
_since = 0

# The connection that tfps has made last; see `_tf_resources.connection`.
_made: tuple | None = None


def tasks_changed() -> None:
    """Notes that tasks have left or joined the cluster, which ends nothing on the own devices.

    To be called after the change, by whoever has made it.
    """
    global _made
    _made = _tf_resources.connection()


class MadeBefore:
    """What lives on this process's own devices, and would end with a connection.

    A connection gives every device a new store of resources, which is empty. Of a variable made
    before, reads and `assign_add` follow the handle to the old value, but `assign` looks in the
    new store by name, and writes where nothing reads. So each variable moves to a resource of the
    new store, and its new handle takes the place of the old one in everything that Python knows:
    the variable and the functions that captured it. Tables are found by name only. They are made
    and filled anew under their old names, so that datasets find them as well.

    Attributes:
      lost: what cannot go on, a sentence for each kind.
    """

    def __init__(self) -> None:
        """Looks through all objects of the process, before the connection."""
        global _since
        self.lost: list[str] = []
        if _tf.local_job() is None or _tf_resources.connection() != _made:
            # No device has been used yet, or somebody else has connected meanwhile.
            _since = _tf_resources.now()
        variables, tables, writers = _tf_resources.live(
            _tf_resources.VARIABLES, _tf_resources.TABLES, _tf_resources.WRITERS
        )
        is_here, named = _tf_resources.is_here, _tf_resources.named_handle_of
        self._variables = [v for v in variables if is_here(_tf_resources.handle_of(v), _since)]
        self._tables = [(t, _tf_resources.contents(t)) for t in tables if is_here(named(t), _since)]
        if writable := sum(_tf_resources.is_open(w, _since) for w in writers):
            self.lost.append(
                f"{writable} tf.summary writer(s) made before the strategy can no longer be "
                "written to; make them after it"
            )

    def carry_over(self) -> None:
        """Moves everything to its new place, after the connection."""
        global _since, _made
        connected = _tf_resources.connection()
        if connected != _made:
            # Other threads may have made something on servers until now, which has ended.
            _since = _tf_resources.now()
            self._move()
        _made = connected

    def _move(self) -> None:
        # The old handles are kept until the end: they are recognized by their `id`.
        moved: dict[int, tuple[tf.Tensor, tf.Tensor]] = {}
        for variable in self._variables:
            old = _tf_resources.handle_of(variable)
            if id(old) not in moved and (new := _tf_resources.rehomed(variable)) is not None:
                moved[id(old)] = old, new
        handles = {key: new for key, (_, new) in moved.items()}
        for variable in self._variables:
            new = handles.get(id(_tf_resources.handle_of(variable)))
            if new is not None:
                _tf_resources.set_handle(variable, new)
        for table, contents in self._tables:
            _tf_resources.make_anew(table, contents)
        if handles and (functions := _tf_resources.replace_captures(handles)):
            self.lost.append(
                f"{functions} function(s) of datasets made before the strategy go on to read the "
                "values that their tf.Variables had; make such datasets after it"
            )
