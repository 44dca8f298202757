"""A moving average of the weights while training: smoother than the last step's, often better."""

import torch
from torch import nn


class MovingAverage:
    """Keeps `average <- decay * average + (1 - decay) * weight` of every trained parameter, in float32.

    Early on the decay is smaller, (1 + step) / (10 + step), so that the random start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step number `step`, counted from 0."""
        share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter.detach().float(), share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the model's weights and the average; a second call undoes it."""
        for name, parameter in self.parameters.items():
            held = parameter.detach().float().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(held)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The average by parameter name."""
        return self.average

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restores what `state_dict` gave."""
        for name, tensor in state.items():
            self.average[name].copy_(tensor)
