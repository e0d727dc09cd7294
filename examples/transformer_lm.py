"""A character-level transformer language model, trained on the standard library's source."""

import argparse

import torch
from stdlib_text import SIZE, batches, load
from torch import nn

LENGTH = 64


class Model(nn.Module):
    def __init__(self, width=96, heads=4, layers=3):
        super().__init__()
        self.embedding = nn.Embedding(SIZE, width)
        self.position = nn.Parameter(torch.randn(LENGTH, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, SIZE)

    def forward(self, codes):
        length = codes.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        states = self.embedding(codes) + self.position[:length]
        return self.head(self.norm(self.blocks(states, mask=mask, is_causal=True)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", help="where to save the weights")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    for codes, targets in batches(load(), args.steps, length=LENGTH):
        loss = nn.functional.cross_entropy(model(codes).flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm_up.step()
    print(f"final loss {loss.item():.4f}")
    if args.out:
        torch.save(model.state_dict(), args.out)


if __name__ == "__main__":
    main()
