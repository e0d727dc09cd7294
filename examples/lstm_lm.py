"""A character-level language model with an LSTM, trained on the standard library's source."""

import argparse

import torch
from stdlib_text import SIZE, batches, load
from torch import nn


class Model(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.embedding = nn.Embedding(SIZE, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(width, SIZE)

    def forward(self, codes):
        states, _ = self.lstm(self.embedding(codes))
        return self.head(states)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--out", help="where to save the weights")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    for codes, targets in batches(load(), args.steps):
        loss = nn.functional.cross_entropy(model(codes).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    print(f"final loss {loss.item():.4f}")
    if args.out:
        torch.save(model.state_dict(), args.out)


if __name__ == "__main__":
    main()
