import torch
from torch import nn


def train(loader, noise):
    generator, critic = nn.Linear(8, 16), nn.Linear(16, 1)
    opt_g = torch.optim.Adam(generator.parameters(), lr=1e-4)
    opt_d = torch.optim.Adam(critic.parameters(), lr=1e-4)
    criterion = nn.BCEWithLogitsLoss()
    for real in loader:
        fake = generator(noise())
        opt_d.zero_grad()
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        loss_d = criterion(critic(real), ones) + criterion(critic(fake.detach()), zeros)
        loss_d.backward()
        nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        opt_d.step()
        opt_g.zero_grad()
        loss_g = criterion(critic(fake), ones)
        loss_g.backward()
        nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
        opt_g.step()
