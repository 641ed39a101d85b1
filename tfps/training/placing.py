"""What a user says of the devices of workers, and the devices that follow from it."""

import dataclasses
import re
from collections.abc import Callable

import keras

from tfps import _keras_placement, errors
from tfps.cluster.devices import WorkerDevices, own_device, worker_devices
from tfps.model.stateless_model import StatelessModel
from tfps.model.step_devices import StepDevices

# From a layer to its device, such as "GPU:1", or None for a layer that may be anywhere.
LayerDevice = Callable[[keras.Layer], str | None]


@dataclasses.dataclass(frozen=True)
class Placing:
    """The trainer's arguments of these names, see `tfps.Trainer`.

    Attributes:
      devices_per_worker: over how many devices a worker splits a batch; None for the default.
      layer_device: which layer is on which device, or None.
    """

    devices_per_worker: int | None = None
    layer_device: LayerDevice | None = None

    def __post_init__(self) -> None:
        count = self.devices_per_worker
        if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
            raise errors.ConfigError(
                f"devices_per_worker={count!r} is not a number of devices; give a whole number, or "
                "None for all GPUs of a worker"
            )
        if count is not None and count < 1:
            raise errors.ConfigError(f"devices_per_worker={count} must be at least 1")

    def devices_for(self, program: StatelessModel, num_workers: int) -> StepDevices:
        """Where the steps of an inspected model run.

        Args:
          program: the model.
          num_workers: of the cluster, to which the chief is connected.

        Raises:
          ConfigError: the workers do not have these devices, or the model cannot be split.
        """
        model = program.model
        if model.run_eagerly:
            return StepDevices(model, program.seed_ids, None, {}, compiles=False)
        present = worker_devices(num_workers)
        layers = self._layers(model, present)
        named = program.named_devices | set(layers.values())
        devices = WorkerDevices.choose(present, self.devices_per_worker, named)
        if len(devices.computing) > 1 and (names := _keras_placement.stateful_layers(model)):
            raise errors.ConfigError(
                f"{names} keep states of the batch's shape (stateful=True), but a worker splits "
                f"its batch over {len(devices.computing)} devices; use devices_per_worker=1"
            )
        own = {key: own_device(*name.split(":")) for key, name in layers.items()}
        # XLA would compile all stages of a model for one device. And it cannot hand on what the
        # gradient of a loop or of a conditional needs, if that is not part of the same graph.
        compiles = bool(model.jit_compile) and not devices.staged and not program.branches
        return StepDevices(model, program.seed_ids, devices, own, compiles)

    def _layers(self, model: keras.Model, present: list[list[str]]) -> dict[int, str]:
        """`id` of a layer -> its device, such as "GPU:1"."""
        if self.layer_device is None:
            return {}
        found = {}
        for layer in _keras_placement.layers_of(model):
            given = self.layer_device(layer)
            if given is None:
                continue
            name = given.rpartition("/")[2].upper().removeprefix("DEVICE:")
            if not re.fullmatch(r"(CPU|GPU):\d+", name):
                raise errors.ConfigError(
                    f'layer_device gave {given!r} for {layer.name}; let it return "GPU:0" or '
                    "another device of a worker, or None"
                )
            for w, devices in enumerate(present):
                if name not in devices:
                    raise errors.ConfigError(
                        f"layer_device gave {given!r} for {layer.name}, but worker {w} has "
                        f"{', '.join(devices)}; name a device that every worker has"
                    )
            found[id(layer)] = name
        return found
