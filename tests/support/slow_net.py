"""A backbone of one's own that takes its time: `slow_net:net`, sent along with a job."""

import time

import torch

SECONDS_PER_CLIP = 0.02


class SlowNet(torch.nn.Module):
    """A few numbers per clip: a linear map of its mean colour."""

    input_px = 32

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 8)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        time.sleep(SECONDS_PER_CLIP * len(clips))
        return self.layer(clips.mean((2, 3, 4)))


def net() -> SlowNet:
    return SlowNet()
