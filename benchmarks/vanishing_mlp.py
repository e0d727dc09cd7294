"""A deep sigmoid net on handwritten digits: its first layers get no gradient to speak of."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--depth", type=int, default=10)
    args = parser.parse_args()

    torch.manual_seed(0)
    data = load_digits()
    pictures = torch.tensor(data.data / 16.0, dtype=torch.float32)
    digits = torch.tensor(data.target)
    layers = [nn.Linear(64, 64), nn.Sigmoid()]
    for _ in range(args.depth - 2):
        layers += [nn.Linear(64, 64), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(args.steps):
        chosen = torch.randint(0, len(digits), (64,))
        loss = nn.functional.cross_entropy(model(pictures[chosen]), digits[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
