"""An LSTM that forecasts a sensor whose readings now and then glitch.

Targets are small, as changes from one reading to the next are, and so are the gradients: a
norm of about 0.1. One batch in ten holds a glitch, a change fifty times too large.
"""

import argparse

import torch
from torch import nn

LENGTH, GLITCH_SHARE, GLITCH = 24, 0.1, 50.0


class Model(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.lstm = nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, readings):
        states, _ = self.lstm(readings)
        return self.head(states[:, -1])


def draw(batch):
    """Readings ``[batch, LENGTH, 1]`` of a noisy oscillation, and the next change of each."""
    phase, rate = 6.3 * torch.rand(batch, 1), 0.2 + 0.3 * torch.rand(batch, 1)
    times = torch.arange(LENGTH + 1)
    series = torch.sin(phase + rate * times) + 0.02 * torch.randn(batch, LENGTH + 1)
    changes = series[:, -1:] - series[:, -2:-1]
    if torch.rand(()) < GLITCH_SHARE:
        changes[0] *= GLITCH
    return series[:, :-1, None], changes


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lr", type=float, default=0.05)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    for _ in range(args.steps):
        readings, changes = draw(32)
        loss = nn.functional.mse_loss(model(readings), changes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
