"""The same loop with the reference: `python with_forge_ref.py FOLDER`"""

import sys

import torch

from forge_ref import CheckpointConfig, CheckpointManager

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 16))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
config = CheckpointConfig(dir=sys.argv[1], interval=4, keep_last_n=2)
manager = CheckpointManager(config, model, optimizer)
first, tokens_seen, _ = manager.load()

for step in range(first + 1, 13):
    inputs = torch.randn(8, 16)
    loss = (model(inputs) - inputs).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    tokens_seen += inputs.numel()
    print(f"step {step} loss {loss.item():.6f}")
    if config.should_save(step):
        manager.save(step, tokens_seen)
