"""When a trainer takes snapshots, what is in them, and what a `fit` goes on from."""

import atexit
import contextlib
import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras

from tfps import _keras_data, errors, exit_codes
from tfps.cluster import failures
from tfps.store import snapshot_parts as parts, snapshot_rows as rows
from tfps.store.server_state import Placed
from tfps.store.snapshot_calls import checked, reader_of
from tfps.store.snapshot_folder import FILE_ERRORS, Folder, Id, Manifest
from tfps.store.snapshot_form import Form
from tfps.store.snapshot_places import of_manifest
from tfps.store.snapshot_reading import SavedServers
from tfps.training.exported_state import Exported
from tfps.training.session import Session
from tfps.training.snapshot_record import Packed, exported, record, unpacked
from tfps.training.snapshot_writer import CHIEF, Copies, SnapshotWriter, say
from tfps.training.snapshots import Snapshots

FORMAT = 2  # Since 2, rows of large tables may be in files of their own.

# Incarnations of this process, by folder: what they have saved is of this very program.
_ours: set[tuple[str, int]] = set()


@dataclasses.dataclass(frozen=True)
class Past:
    """A snapshot that a `fit` finds.

    Attributes:
      manifest: of the snapshot.
      fit: the number, from 1, of the `fit` in which it was taken, counted by trainer.
      has_ended: whether that `fit` had come to its end.
      histories: per `fit`, (index, logs) of its epochs.
      state: of training.
      servers: the servers' part of the state, which is in files.
    """

    manifest: Manifest
    fit: int
    has_ended: bool
    histories: list[list[tuple[int, dict[str, Any]]]]
    state: Exported
    servers: SavedServers


class GoneBack(Exception):
    """Everything is as it was at a snapshot, because servers were lost; `fit` goes on from there.

    Attributes:
      past: the snapshot.
    """

    def __init__(self, past: Past):
        super().__init__(past.manifest.id)
        self.past = past


class Snapshotter:
    """The snapshots of one trainer.

    Attributes:
      settings: what the user gave.
    """

    def __init__(self, settings: Snapshots, session: Session):
        """Touches no file before the first `fit`.

        Args:
          settings: what the user gave.
          session: whose state is saved.
        """
        self.settings = settings
        self._session = session
        self._folder = Folder(settings.directory)
        self._reader = parts.Reader()
        self._writer: SnapshotWriter | None = None
        self._taken: Id | None = None  # the newest that was begun
        self._incarnation = 0
        self._fit = 0
        self._goes_on_from: int | None = None  # the `fit` of the snapshot to resume
        self._histories: list[list[tuple[int, dict[str, Any]]]] = []
        self._candidates: list[Id] = []
        self._order = 0
        self._job = 0  # the incarnation of the chief with which this job began
        self._model: str | None = None  # as JSON, of the present `fit`
        self._told: Callable[[], bool] = lambda: False  # whether the process was told to end
        self._updates = 0  # since the last cut that was saved
        self._began = -math.inf  # s, when that was

    # The begin and the end of a `fit`.

    def begin_fit(self) -> None:
        """Counts a `fit`, and looks for snapshots that it may go on from.

        Raises:
          ConfigError: the folder cannot be written.
        """
        self._fit, self._model = self._fit + 1, None
        self._updates, self._began = 0, time.monotonic()
        if self._writer is None:
            self._claim()
        elif self._goes_on_from is not None and self._fit > self._goes_on_from:
            self._candidates = []

    def _claim(self) -> None:
        folder, self._candidates = self._folder, self._folder.complete()
        if self._candidates and self._is_over(self._candidates[0]):
            self._candidates = []
        self._incarnation = folder.claim()
        calls = self._session.calls
        look = calls.ask.require_alive
        self._writer = SnapshotWriter(
            folder, self._incarnation, self.settings.keep, look, self._copies(), calls.ps_hosts
        )
        _ours.add((folder.path, self._incarnation))
        _note_end_of(folder, self._incarnation)
        self._order, self._job = self._beginning()

    def _copies(self) -> Copies | None:
        copies, num_ps = self.settings.copies, self._session.calls.num_ps
        if copies > num_ps:
            raise errors.ConfigError(
                f"copies={copies} of each part need as many ps, and there are {num_ps}; lower it, "
                "or add parameter servers"
            )
        return None if copies == 1 else Copies(num_ps, copies)

    def _beginning(self) -> tuple[int, int]:
        """What the job began with: the seed of the order of its data, and its first chief."""
        for id in self._candidates:
            with contextlib.suppress(errors.SnapshotDamaged):
                content = self._folder.read(id).content
                return content["order"], content.get("job", id.incarnation)
        seed = _keras_data.program_seed()
        order = int.from_bytes(os.urandom(4)) if seed is None else seed
        return order, self._incarnation

    @property
    def order(self) -> int:
        """The seed of the order of the data in the present `fit`."""
        return (self._order + self._fit) % (1 << 31)

    def _is_over(self, id: Id) -> bool:
        """Whether the newest snapshot is the end of a program, or of another trainer of this one.

        A `fit` that came to its end in a program that did not is not run again.
        """
        folder = self._folder
        try:
            has_ended = bool(folder.read(id).content["has_ended"])
        except errors.SnapshotDamaged:
            return False  # Those before it will be looked at.
        is_ours = (folder.path, id.incarnation) in _ours
        return has_ended and (is_ours or folder.has_ended(id.incarnation))

    def found(self) -> Iterator[Past]:
        """What the present `fit` may go on from, the best first; nothing if it begins afresh.

        Raises:
          SnapshotDamaged: there are snapshots, and none of them can be read.
        """
        reasons = []
        for id in self._candidates:
            try:
                past = self._read(id)
            except errors.SnapshotDamaged as e:
                reasons.append(self.skipped(id, e))
                continue
            self._goes_on_from = past.fit
            self._histories = [list(h) for h in past.histories]
            yield past
            reasons.append(str(id))
        if reasons:
            raise errors.SnapshotDamaged(
                f"none of the {len(reasons)} snapshots in {self._folder.path} can be read; delete "
                "the folder to begin anew, or bring its files back"
            )

    def skipped(self, id: Id, error: errors.SnapshotDamaged) -> str:
        """Says that a snapshot cannot be used; returns its name."""
        say(f"{id} is left out, and the one before it is taken: {error}")
        return str(id)

    def unfit(self, past: Past, error: errors.ConfigError) -> errors.ConfigError:
        """The error of a snapshot that was taken by another program."""
        return errors.ConfigError(
            f"{past.manifest.id} in {self._folder.path} does not go with this program ({error}); "
            "give Snapshots another folder"
        )

    def _read(self, id: Id) -> Past:
        manifest = self._folder.read(id)
        content = manifest.content
        if content.get("format") not in (1, FORMAT):
            raise errors.SnapshotDamaged(
                f"{id} has the format {content.get('format')!r}, and this version of tfps reads "
                f"{FORMAT}"
            )
        reader = reader_of(self._folder.prefix(id, CHIEF))
        read = checked(reader.get_tensor, CHIEF)
        place = of_manifest(self._folder, id, content, self._session.calls.num_ps)
        servers = SavedServers(place, Form(**content["form"]))
        histories = [
            [(epoch, logs) for epoch, logs in one] for one in unpacked(content["histories"], read)
        ]
        state = exported(unpacked(content["record"], read), servers)
        return Past(manifest, content["fit"], content["has_ended"], histories, state, servers)

    def resumes(self, past: Past) -> bool:
        """Whether the present `fit` goes on from a snapshot; otherwise it had ended before."""
        return past.fit == self._fit and not past.has_ended

    def say_resumed(self, past: Past) -> None:
        """Says what the present `fit` goes on from."""
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(past.manifest.time))
        chief, where = past.state.chief, f"{self._folder.path} of {at}"
        if not self.resumes(past):
            say(
                f"fit number {self._fit} had ended before, and is not run again; its state is that "
                f"of {past.manifest.id} in {where} (give another folder to begin anew)"
            )
            return
        within = f", batch {chief.open.batches}" if chief.open else ""
        say(
            f"goes on from {past.manifest.id} in {where}: epoch {chief.epoch + 1}{within}, step "
            f"{chief.step_number}"
        )

    def history_of(self, fit: int) -> list[tuple[int, dict[str, Any]]]:
        """(index, logs) of each epoch of a `fit` that had ended before."""
        return self._histories[fit - 1] if fit <= len(self._histories) else []

    @property
    def fit_number(self) -> int:
        """The number of the present or last `fit`, from 1."""
        return self._fit

    def end_fit(self) -> None:
        """Saves what the `fit` has ended with, and waits for the files.

        Raises:
          Superseded: a later chief writes to the folder.
          TaskLost: a server went away, and so the files are not complete.
        """
        self.take_surely(has_ended=True)

    @contextlib.contextmanager
    def ending_in_order(self) -> Iterator[None]:
        """In this context SIGTERM ends the process after a last snapshot, at the next cut."""
        with exit_codes.sigterm_noted() as self._told:
            self._session.calls.is_leaving = self._told
            yield
        # It came after the last cut, which was saved.
        if self.is_leaving:
            exit_codes.terminate()

    @property
    def is_leaving(self) -> bool:
        """Whether the process was told to end, and does so at the next cut."""
        return self._told()

    # Cuts.

    def take_surely(self, has_ended: bool = False) -> None:
        """Takes a snapshot, as `take` does, and waits for its files.

        Raises:
          TaskLost: a server went away, and so the snapshot is not complete.
        """
        self.take(has_ended)
        self.wait()
        if self._writer is not None and self._writer.saved != self._taken:
            # A full disk is said in a line. If a server is gone, whoever calls this is to know.
            self._session.calls.servers.ask()
            self._session.calls.require_servers()

    def counts(self, updates: int) -> None:
        """Notes updates of the servers."""
        self._updates += updates

    @property
    def counts_updates(self) -> bool:
        """Whether the next cut depends on how many updates there were."""
        return self.settings.every_updates is not None

    @property
    def is_due(self) -> bool:
        """Whether a cut is to be saved as soon as there is one."""
        if self.is_leaving:
            return True
        every, count = self.settings.every, self.settings.every_updates
        if count is not None and self._updates >= count:
            return True
        if every is None or time.monotonic() < self._began + every:
            return False
        return self._writer is not None and not self._writer.is_busy

    def take(self, has_ended: bool = False) -> None:
        """Saves the present state, at a cut; files are written in the background.

        Args:
          has_ended: whether the present `fit` has come to its end.

        Raises:
          Superseded: a later chief writes to the folder.
          SystemExit: the process was told to end, and the state is saved.
        """
        assert self._writer is not None
        self._writer.wait()
        self._updates, self._began = 0, time.monotonic()
        if self._model is None:
            self._model = _architecture(self._session.model)
        session, state = self._session, self._session.state
        store = session.served.store
        sides = {n: s for n, s in state.sides_in_use().items() if s.outer is not None}
        outer: dict[str, Placed] = {name: side.placed() for name, side in sides.items()}
        held = parts.held_by(store, list(outer.values()), whole=False)
        chains = self._writer.chains
        values, tables = session.calls.ask(
            lambda: (self._reader.read(held), rows.begin(store, chains))
        )
        chief = state.chief_now()
        histories = [*self._histories[: self._fit - 1]]
        histories += [[] for _ in range(self._fit - 1 - len(histories))]
        self._histories = [*histories, list(chief.history)]
        packed = Packed()
        rates = {name: side.outer_rate for name, side in sides.items()}
        tree = record(chief, state.memory(), state.own.export(), state.sides_restored, rates)
        content = {
            "format": FORMAT,
            "order": self._order,
            "job": self._job,
            "fit": self._fit,
            "has_ended": has_ended,
            "histories": packed.tree(self._histories),
            "record": packed.tree(tree),
            "form": dataclasses.asdict(Form.of(store, outer)),
            "model": self._model,
        }

        def begins(id: Id) -> None:
            # The next chief may go on from the snapshot as soon as it is complete.
            session.ledger.cut(str(id))

        self._taken = self._writer.write(values, tables, packed.arrays, content, begins)
        if not has_ended:
            self._stop_if_asked()
        if self.is_leaving:
            self.wait()
            say(f"told to end by SIGTERM; the newest snapshot is {self._writer.saved}")
            exit_codes.terminate()

    def _stop_if_asked(self) -> None:
        """Lets `fit` end here if an evaluator has asked for it."""
        model, reason = self._session.model, self._folder.stop_reason(self._job, self._fit)
        if reason is not None and not model.stop_training:
            say(f"training ends, as the evaluator asks: {reason}")
            model.stop_training = True

    # After the loss of servers.

    def restore_servers(self, servers: Collection[int]) -> Past:
        """Makes lost servers anew, with what they had in the newest snapshot.

        The others keep what they have. To be called when nothing is outstanding, and the servers
        are connected again.

        Args:
          servers: indices of the parameter servers.

        Returns:
          The snapshot.

        Raises:
          ConfigError: the variables of the snapshot lay in another way on the servers.
          TaskLost: there is no snapshot of this `fit` that can be read.
        """
        state = self._session.state
        state.renew(servers)
        for past in self._pasts():
            try:
                state.refill(servers, past.servers)
            except errors.SnapshotDamaged as e:
                self.skipped(past.manifest.id, e)
                continue
            return past
        raise self._nothing_to_restore(servers)

    def go_back(self, servers: Collection[int]) -> Past:
        """Makes lost servers anew, and lets all of training go back to the newest snapshot.

        Args:
          servers: indices of the lost parameter servers; see `restore_servers`.

        Returns:
          The snapshot. The feed has to be brought to its position.

        Raises:
          TaskLost: there is no snapshot of this `fit` that can be read.
        """
        session = self._session
        session.state.renew(servers)
        for past in self._pasts():
            try:
                ended = session.state.go_back(past.state)
            except errors.SnapshotDamaged as e:
                self.skipped(past.manifest.id, e)
                continue
            for side in ended:
                session.steps.forget(side)
            self._updates, self._began = 0, time.monotonic()
            session.ledger.back(str(past.manifest.id), servers)
            return past
        raise self._nothing_to_restore(servers)

    def _pasts(self) -> Iterator[Past]:
        """The snapshots of the present `fit`, the newest first, once what was begun is written."""
        with contextlib.suppress(errors.TaskLost):
            self.wait()
        for id in self._folder.complete():
            try:
                past = self._read(id)
            except errors.SnapshotDamaged as e:
                self.skipped(id, e)
                continue
            # A job before, which came to its end, may have left others with the same number.
            job = past.manifest.content.get("job", id.incarnation)
            if past.fit == self._fit and job == self._job and not past.has_ended:
                yield past

    def _nothing_to_restore(self, servers: Collection[int]) -> BaseException:
        names = ", ".join(map(str, sorted(servers)))
        said = (
            f"ps {names} lost what it held, and {self._folder.path} has no snapshot of this fit to "
            "go back to; start the program again"
        )
        return failures.unavailable(errors.TaskLost(said))

    def wait(self) -> None:
        """Waits until what was begun is written; see `take`."""
        if self._writer is not None:
            self._writer.wait()


def _architecture(model: keras.Model) -> str:
    """The model as JSON, or nothing if Keras cannot write it."""
    try:
        with warnings.catch_warnings():
            # Whoever loads the model will learn what of it is unsafe.
            warnings.simplefilter("ignore")
            return model.to_json()
    except Exception:  # A model of the user's own may raise anything.
        return ""


def _note_end_of(folder: Folder, incarnation: int) -> None:
    """Notes the end of the program in the folder, unless it is ended by an error or a signal."""
    process = os.getpid()

    def end() -> None:
        if os.getpid() == process and not exit_codes.is_noted():
            with contextlib.suppress(*FILE_ERRORS):  # The folder may be gone by now.
                folder.end(incarnation)

    atexit.register(end)
