"""What the chief does when a parameter server is lost: it waits for it, and training goes back."""

import time

import tensorflow as tf

from tfps import _tf, errors
from tfps.cluster import failures
from tfps.cluster.devices import ps_device
from tfps.cluster.remote_function import RemoteFunction
from tfps.store.handles import StoreHandles
from tfps.store.resources import read
from tfps.training.session import Session
from tfps.training.snapshotter import Past, Snapshotter

# s within which workers have to find the way to a ps that has returned. Before they try again,
# they wait longer and longer, as gRPC does.
_PATHS = 60.0


def recover(session: Session, snapshotter: Snapshotter | None, loss: errors.TaskLost) -> Past:
    """Waits for lost parameter servers, and brings all servers to the newest snapshot.

    All servers go back together, so that what they have is of one moment, and every batch since is
    trained on again: in the end no update is lost with a ps.

    Args:
      session: of the trainer, whose workers are in no call.
      snapshotter: of the trainer; None if it saves nothing.
      loss: what ended the calls.

    Returns:
      The snapshot. The feed has to be brought to its position.

    Raises:
      TaskLost: no ps is lost, but too few workers live; or there are no snapshots; or a ps did not
        return within `task_timeout`.
    """
    calls = session.calls
    _tf.forget_error()
    silent: frozenset[int] = frozenset()
    if not calls.servers.ask() and snapshotter is not None:
        # What it was told just then, it may have done or not.
        silent = calls.servers.outlast_silence()
    if not silent and not calls.servers.ask():
        raise loss
    if snapshotter is None:
        said = (
            f"{loss}; what it held is lost, because this Trainer has no snapshots=: with a folder "
            "there, training would go on from the newest one"
        )
        raise failures.unavailable(errors.TaskLost(said)) from loss
    began, given = calls.servers.noticed(), session.state.chief.step_number
    failures.say(f"{loss}; waiting up to {calls.task_timeout:g} s for it to return")
    lost: frozenset[int] = frozenset()
    while True:
        # What was made anew for a ps may have been interrupted by the loss of another one.
        lost |= calls.await_servers()
        try:
            past = snapshotter.go_back(lost)
            _await_paths(session)
        except (errors.TaskLost, tf.errors.OpError):
            # Another one may have been lost meanwhile.
            if not calls.servers.ask():
                raise
            continue
        names = ", ".join(map(str, sorted(lost or silent)))
        line = (
            f"ps {names} was gone for {time.monotonic() - began:.1f} s; training goes on from the "
            f"snapshot of {time.strftime('%H:%M:%S', time.localtime(past.manifest.time))}, and "
            f"{given - past.state.chief.step_number:,} batches since then are done again"
        )
        session.losses.lost_ps += len(lost)
        session.losses.say(line)
        failures.say(line)
        return past


def _await_paths(session: Session) -> None:
    """Waits until every worker reaches every ps."""

    def read_versions(handles: StoreHandles) -> list[tf.Tensor]:
        versions = []
        for p, handle in enumerate(handles.versions):
            with tf.device(ps_device(p)):
                versions.append(read(handle, tf.int64, ()))
        return [tf.identity(v) for v in versions]

    handles = session.served.store.handles().store
    look = RemoteFunction(read_versions, handles)
    deadline = time.monotonic() + _PATHS

    def reach(worker: int) -> None:
        del worker
        while True:
            try:
                look(handles)
                return
            except tf.errors.UnavailableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    session.calls.run_on_each(reach)
