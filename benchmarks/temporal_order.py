"""The temporal order task: which of four orders two symbols had, many steps ago.

Set up as in Pascanu, Mikolov and Bengio (ICML 2013): 50 tanh units, weights from
N(0, 0.1), plain SGD at 0.01 on batches of 20, first symbol between T/10 and 2T/10,
second between 4T/10 and 5T/10. They trained for 5 million updates; `--steps` is less.
"""

import argparse

import torch
from torch import nn

DISTRACTORS, SYMBOLS, CLASSES = 4, 2, 4


class Model(nn.Module):
    def __init__(self, width=50):
        super().__init__()
        self.rnn = nn.RNN(DISTRACTORS + SYMBOLS, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.0, 0.1)

    def forward(self, codes):
        one_hot = nn.functional.one_hot(codes, DISTRACTORS + SYMBOLS).float()
        states, _ = self.rnn(one_hot)
        return self.head(states[:, -1])


def draw(batch, length):
    """Sequences ``[batch, length]`` and their classes ``[batch]``."""
    codes = torch.randint(0, DISTRACTORS, (batch, length))
    first, second = torch.randint(0, SYMBOLS, (2, batch))
    rows, tenth = torch.arange(batch), length / 10
    codes[rows, (tenth * (1 + torch.rand(batch))).long()] = DISTRACTORS + first
    codes[rows, (tenth * (4 + torch.rand(batch))).long()] = DISTRACTORS + second
    return codes, SYMBOLS * first + second


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--lr", type=float, default=0.01)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    for _ in range(args.steps):
        codes, classes = draw(20, args.length)
        loss = nn.functional.cross_entropy(model(codes), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes, classes = draw(10_000, args.length)
        wrong = (model(codes).argmax(1) != classes).float().mean().item()
    print(f"error {wrong:.4f}")


if __name__ == "__main__":
    main()
