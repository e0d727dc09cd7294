"""A vanilla RNN that reads scikit-learn's handwritten digits row by row."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


class Model(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.rnn = nn.RNN(8, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, pictures):
        states, _ = self.rnn(pictures)
        return self.head(states[:, -1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--out", help="where to save the weights")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    data = load_digits()
    pictures = torch.tensor(data.images / 16.0, dtype=torch.float32)
    digits = torch.tensor(data.target)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    for _ in range(args.steps):
        chosen = torch.randint(0, len(digits), (64,))
        loss = nn.functional.cross_entropy(model(pictures[chosen]), digits[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"final loss {loss.item():.4f}")
    if args.out:
        torch.save(model.state_dict(), args.out)


if __name__ == "__main__":
    main()
