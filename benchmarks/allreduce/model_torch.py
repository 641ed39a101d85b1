"""The models of `model_keras` in PyTorch, with the same first weights."""

import numpy as np
import torch
from torch import nn

from benchmarks.allreduce import networks
from benchmarks.allreduce.networks import NETWORKS


class Net(nn.Module):
    """The network of a name in `NETWORKS`; gradients of its table are sparse."""

    def __init__(self, name: str):
        super().__init__()
        network = NETWORKS[name]
        self.table = (
            nn.Embedding(network.rows, network.width, sparse=True) if network.rows else None
        )
        size = network.inputs * (network.width or 1)
        layers: list[nn.Module] = []
        for units in network.units:
            layers += [nn.Linear(size, units), nn.ReLU()]
            size = units
        self.layers = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), networks.weights(network), strict=True):
                parameter.copy_(torch.from_numpy(value.T if self._is_kernel(parameter) else value))

    def _is_kernel(self, parameter: nn.Parameter) -> bool:
        return parameter.ndim == 2 and (self.table is None or parameter is not self.table.weight)

    def forward(self, x):
        if self.table is not None:
            x = self.table(x).flatten(1)
        return self.layers(x)

    def weights(self) -> list[np.ndarray]:
        """In Keras's order and layout."""
        return [
            p.detach().numpy().T if self._is_kernel(p) else p.detach().numpy()
            for p in self.parameters()
        ]
