"""Muon: momentum whose update is made orthogonal, for the hidden matrices of a network (Jordan et al., 2024).

`torch.optim.Muon` does the same in bfloat16, one matrix at a time. On a CPU without bfloat16 instructions that took
20 times as long as the rest of a training step of the tiny model; here matrices of one shape go through together,
in float32 on a CPU.
"""

import math

import torch

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic Newton-Schulz iteration: steep at 0, so that five steps bring every singular value near 1."""

ITERATIONS = 5


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrices, roughly: singular values become 0.7 to 1.2.

    Args:
        matrices: (K, rows, columns) with rows <= columns; a zero matrix stays zero.
    """
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (K, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; a tall matrix takes sqrt(rows / columns) larger steps.

    State and groups have the names of `torch.optim.Muon`.

    Raises:
        ValueError: a parameter is not a matrix.
    """

    def __init__(self, params, lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        odd = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.ndim != 2]
        if odd:
            raise ValueError(f"Muon trains matrices only, but was given parameters of shape {odd[:3]}")

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Updates every parameter that has a gradient; a closure is an error."""
        if closure is not None:
            raise ValueError("Muon.step takes no closure")
        for group in self.param_groups:
            alike: dict[tuple, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.shape, parameter.device), []).append(parameter)
            for (shape, device), parameters in alike.items():
                self._step_alike(parameters, group, *shape, device)

    def _step_alike(self, parameters: list, group: dict, rows: int, columns: int, device: torch.device) -> None:
        directions = torch.stack([self._direction(p, group["momentum"]) for p in parameters])
        directions = directions.to(torch.bfloat16 if device.type == "cuda" else torch.float32)
        wide = rows <= columns
        updates = orthogonalized(directions if wide else directions.mT)
        rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
        for parameter, update in zip(parameters, updates if wide else updates.mT, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.to(parameter.dtype), alpha=-rate)

    def _direction(self, parameter: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        average = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum)
