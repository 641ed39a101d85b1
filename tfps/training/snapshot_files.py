"""What is in a folder of snapshots, for people: listed, shown, and exported for plain Keras."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfps import errors
from tfps.store.snapshot_folder import Folder, Id, Manifest
from tfps.store.snapshot_form import Form
from tfps.store.snapshot_places import of_manifest
from tfps.store.snapshot_reading import SavedServers
from tfps.training.model_filling import Filling
from tfps.training.snapshot_record import unpacked


class Listed(NamedTuple):
    """A snapshot of a folder.

    Attributes:
      id: which snapshot.
      manifest: of the snapshot; None if it is damaged.
      reason: what is damaged; empty if nothing is.
    """

    id: Id
    manifest: Manifest | None
    reason: str

    @property
    def nbytes(self) -> int:
        """Bytes of its files."""
        return sum(size for size, _ in self.manifest.files.values()) if self.manifest else 0


def listed(directory: str) -> list[Listed]:
    """The complete snapshots of a folder, the newest first; sizes and manifests are checked."""
    folder, found = Folder(directory), []
    for id in folder.complete():
        try:
            found.append(Listed(id, folder.read(id), ""))
        except errors.SnapshotDamaged as e:
            found.append(Listed(id, None, str(e)))
    return found


def chosen(directory: str, name: str | None) -> Manifest:
    """The manifest of a snapshot.

    Args:
      directory: the folder.
      name: of the snapshot; None for the newest that is not damaged.

    Raises:
      ConfigError: there is no such snapshot.
      SnapshotDamaged: it cannot be read.
    """
    every = listed(directory)
    for one in every:
        if one.manifest and name in (None, str(one.id)):
            return one.manifest
        if name == str(one.id):
            raise errors.SnapshotDamaged(one.reason)
    names = ", ".join(str(one.id) for one in every) or "no snapshot"
    raise errors.ConfigError(f"{directory} has no {name or 'complete snapshot'}; it has {names}")


def table(directory: str) -> Iterator[str]:
    """Lines about the snapshots of a folder."""
    yield f"{'snapshot':<24} {'taken':<20} {'bytes':>15}  fit  where"
    for one in listed(directory):
        if one.manifest is None:
            yield f"{one.id!s:<24} damaged: {one.reason}"
            continue
        content = one.manifest.content
        where = f"at the end of fit {content['fit']}" if content["has_ended"] else _where(content)
        yield (
            f"{one.id!s:<24} {_time(one.manifest):<20} {one.nbytes:>15,}  "
            f"{content['fit']:>3}  {where}"
        )


def _where(content: dict[str, Any]) -> str:
    chief = chief_of(content)
    within = f", batch {chief['open']['batches']}" if chief["open"] else ""
    return f"epoch {chief['epoch'] + 1}{within}, step {chief['step_number']}"


def chief_of(content: dict[str, Any]) -> dict[str, Any]:
    """What the manifest itself says of the chief; arrays are left out."""
    return unpacked(content["record"], lambda name: np.zeros(0))["chief"]


def _time(manifest: Manifest) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(manifest.time))


def shown(manifest: Manifest) -> Iterator[str]:
    """Lines about what is in a snapshot."""
    content = manifest.content
    form, chief = Form(**content["form"]), chief_of(content)
    yield f"{manifest.id}, taken {_time(manifest)}"
    yield f"fit {content['fit']}: " + ("ended" if content["has_ended"] else _where(content))
    yield f"learning rate {chief['learning_rate']}, outer updates {chief['outer_updates']}"
    position = chief["position"]
    yield f"position in the data: {position if position else 'the beginning'}"
    yield "\nfile" + " " * 52 + f"{'bytes':>15}"
    for name, (size, _) in sorted(manifest.files.items()):
        yield f"{name:<56}{size:>15,}"
    yield f"\nvariable, on {form.num_ps} ps"
    for path, shape, dtype in form.variables:
        yield f"{path:<48}{shape!s:<20}{dtype}"
    slots = sorted({name for _, names in form.optimizers for k, name in names if k is not None})
    yield f"\nslots of the optimizer: {', '.join(slots) or 'none'}"
    for name, _ in form.outer:
        yield f"outer optimizer: {name}"


def export(directory: str, manifest: Manifest, output: str) -> str:
    """Writes a snapshot in a form that plain Keras or TensorFlow opens.

    Args:
      directory: the folder.
      manifest: of the snapshot.
      output: "x.keras" for the whole model, with its optimizer and slots; "x.weights.h5" for
        Keras's `load_weights`; otherwise the prefix of a TensorFlow checkpoint of the `model` and
        its `optimizer`, see `tf.train.Checkpoint`.

    Returns:
      A line that says what was written.

    Raises:
      ConfigError: Keras cannot build the model from the snapshot.
      SnapshotDamaged: a part cannot be read.
    """
    place = of_manifest(Folder(directory), manifest.id, manifest.content, num_ps=0)
    servers = SavedServers(place, Form(**manifest.content["form"]))
    model = _rebuilt(manifest)
    filling = Filling(model)
    if filling.is_less_than(servers):
        raise errors.ConfigError(
            "the snapshot has other variables than the model in it: its own train_step trains what "
            "the model does not list; load the snapshot with the program that wrote it"
        )
    left_out = filling.fill(servers, optimizer=True)
    _write(model, output)
    return f"{manifest.id} is exported to {output}{left_out}"


def _rebuilt(manifest: Manifest) -> keras.Model:
    text = manifest.content["model"]
    remedy = (
        "load the snapshot with the program that wrote it: make a trainer with the same folder, "
        "and call fit"
    )
    if not text:
        raise errors.ConfigError(f"the model of {manifest.id} cannot be written as JSON; {remedy}")
    try:
        return keras.models.model_from_json(text)
    except (TypeError, ValueError) as e:
        raise errors.ConfigError(
            f"Keras cannot build the model of {manifest.id} without its classes "
            f"({errors.summary(str(e))}); {remedy}"
        ) from e


_WRITERS: dict[str, Callable[[keras.Model, str], Any]] = {
    ".keras": lambda model, path: model.save(path),
    ".weights.h5": lambda model, path: model.save_weights(path),
}


def _write(model: keras.Model, output: str) -> None:
    for suffix, write in _WRITERS.items():
        if output.endswith(suffix):
            write(model, output)
            return
    optimizer = getattr(model, "optimizer", None)
    held = {"model": model} if optimizer is None else {"model": model, "optimizer": optimizer}
    tf.train.Checkpoint(**held).write(output)
