import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_


def update(actor, critic, batches):
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=3e-4)
    for states, actions, returns in batches:
        value_loss = nn.functional.mse_loss(critic(states), returns)
        policy_loss = -(actor(states).log_softmax(-1).gather(1, actions) * returns).mean()
        optimizer.zero_grad()
        (policy_loss + value_loss).backward()
        clip_grad_norm_(actor.parameters(), 0.5)
        clip_grad_norm_(critic.parameters(), 0.5)
        optimizer.step()
