"""The temporal order task: which of four orders two symbols had, many steps ago.

Set up as in Pascanu, Mikolov and Bengio (ICML 2013) and the code published with it, in their
"basic tanh" setting: 50 tanh units, weights from N(0, 0.1), biases 0, plain SGD at 0.01 on
batches of 20, the first symbol in the second tenth of the sequence, the other in the sixth. A
run has succeeded once under 1 % of 10,000 new sequences are wrong; then it stops. They
allowed 5 million updates; `--steps` is less.
"""

import argparse

import torch
from torch import nn

DISTRACTORS, SYMBOLS, CLASSES = 4, 2, 4
CHECK_EVERY, SUCCESS = 500, 0.01


class Model(nn.Module):
    def __init__(self, width=50):
        super().__init__()
        self.rnn = nn.RNN(DISTRACTORS + SYMBOLS, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, 0.0, 0.1)
            else:
                nn.init.zeros_(parameter)

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
    codes[rows, (tenth * (5 + torch.rand(batch))).long()] = DISTRACTORS + second
    return codes, SYMBOLS * first + second


@torch.no_grad()
def error(model, length, sequences):
    """The share of new sequences that are wrong."""
    codes, classes = draw(sequences, length)
    return (model(codes).argmax(1) != classes).float().mean().item()


def solved(model, length):
    """Whether it has succeeded; a few sequences first, for many cost as much as 100 updates."""
    return error(model, length, 500) < SUCCESS and error(model, length, 10_000) < SUCCESS


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=30)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--lr", type=float, default=0.01)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    for step in range(1, args.steps + 1):
        codes, classes = draw(20, args.length)
        loss = nn.functional.cross_entropy(model(codes), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0 and solved(model, args.length):
            break
    print(f"error {error(model, args.length, 10_000):.4f} after {step} updates")


if __name__ == "__main__":
    main()
