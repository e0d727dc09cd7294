"""A GRU that tells of what kind the next character of a text is: letter, digit, space, ...

The loss is summed over all characters of a batch, not averaged, as sequence toolkits do
it: the gradient's norm is in the hundreds, and the learning rate is small to match.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from stdlib_text import SIZE, batches, load

CLASSES = 5


class Model(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.embedding = nn.Embedding(SIZE, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, codes):
        states, _ = self.gru(self.embedding(codes))
        return self.head(states)


def tags():
    """The kind of each ASCII code: 0 space, 1 letter, 2 digit, 3 bracket, 4 other."""
    kinds = torch.full((SIZE,), 4)
    for code in range(SIZE):
        letter = chr(code)
        if letter.isspace():
            kinds[code] = 0
        elif letter.isalpha():
            kinds[code] = 1
        elif letter.isdigit():
            kinds[code] = 2
        elif letter in "()[]{}":
            kinds[code] = 3
    return kinds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    model, kinds = Model(), tags()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    for codes, following in batches(load(), args.steps, length=32):
        answers = kinds[following]
        loss = nn.functional.cross_entropy(
            model(codes).flatten(0, 1), answers.flatten(), reduction="sum"
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
