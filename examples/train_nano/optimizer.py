"""The optimizer of the nano models: orthogonalised momentum for matrices, AdamW for the rest.

A matrix moves by U V^T, where U S V^T is the singular value decomposition of its momentum (the Muon
update). Newton-Schulz iterations compute it in the type of the network's products. It is scaled to
the usual size of an Adam update, so that one learning rate and one weight decay serve both kinds.
Embeddings, norms and biases take AdamW.
"""

from concurrent.futures import Executor

import torch
from torch import Tensor

from examples.train_nano.network import Network

MOMENTUM = 0.95
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.05
_POLYNOMIAL = (3.4445, -4.775, 2.0315)  # odd terms of a quintic that drives singular values to 1
_ITERATIONS = 5


def orthogonalise(momentum: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, rows, columns] -> an approximation of U V^T of each, of root mean square 0.2."""
    a, b, c = _POLYNOMIAL
    x = momentum.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    x = x.transpose(1, 2) if tall else x
    return x.float() * (0.2 * max(x.shape[1:]) ** 0.5)


class Optimizer:
    """Updates the weights of a network from gradients given by name.

    Args:
        network: its parameters are changed in place.
        pool: runs the updates of the matrices, up to five of one shape per task.
    """

    def __init__(self, network: Network, pool: Executor) -> None:
        self.dtype = network.dtype
        self.weights = dict(network.named_parameters())
        self.pool = pool
        self.steps = 0
        self.first = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.second = {
            name: torch.zeros_like(w) for name, w in self.weights.items() if not _is_matrix(name, w)
        }
        shapes: dict[tuple[int, ...], list[str]] = {}
        for name, weight in self.weights.items():
            if _is_matrix(name, weight):
                shapes.setdefault(tuple(weight.shape), []).append(name)
        self.groups = [
            names[i : i + 5] for names in shapes.values() for i in range(0, len(names), 5)
        ]

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], rate: float) -> None:
        """One update of every weight."""
        self.steps += 1
        for name in self.second:
            self._adam(name, gradients[name], rate)
        list(self.pool.map(lambda names: self._muon(names, gradients, rate), self.groups))

    @torch.no_grad()
    def _muon(self, names: list[str], gradients: dict[str, Tensor], rate: float) -> None:
        ahead = []
        for name in names:
            self.first[name].lerp_(gradients[name], 1 - MOMENTUM)
            ahead.append(gradients[name].lerp(self.first[name], MOMENTUM))
        updates = orthogonalise(torch.stack(ahead), self.dtype)
        for name, update in zip(names, updates, strict=True):
            self.weights[name].mul_(1 - rate * WEIGHT_DECAY).sub_(update, alpha=rate)

    def _adam(self, name: str, gradient: Tensor, rate: float) -> None:
        first, second, weight = self.first[name], self.second[name], self.weights[name]
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        mean = first / (1 - BETAS[0] ** self.steps)
        scale = (second / (1 - BETAS[1] ** self.steps)).sqrt() + 1e-8
        if weight.dim() == 2:
            weight.mul_(1 - rate * WEIGHT_DECAY)
        weight.sub_(mean / scale, alpha=rate)

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint has to hold."""
        state = {f"first.{name}": tensor for name, tensor in self.first.items()}
        state |= {f"second.{name}": tensor for name, tensor in self.second.items()}
        return state | {"steps": torch.tensor(self.steps)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restores what state() returned."""
        self.steps = int(state["steps"])
        for kind, tensors in (("first", self.first), ("second", self.second)):
            for name, tensor in tensors.items():
                tensor.copy_(state[f"{kind}.{name}"])


def _is_matrix(name: str, weight: Tensor) -> bool:
    return weight.dim() == 2 and "embed" not in name
