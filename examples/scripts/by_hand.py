"""The same loop made right by hand: `python by_hand.py FOLDER`

It saves the random stream, writes beside the checkpoint, syncs the file, renames it, and syncs the folder.
"""

import os
import sys

import torch

folder = sys.argv[1]
os.makedirs(folder, exist_ok=True)
path = os.path.join(folder, "checkpoint.pt")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 16))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
first = 0
if os.path.exists(path):
    checkpoint = torch.load(path)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    torch.set_rng_state(checkpoint["random"])
    first = checkpoint["step"]


def save(step: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    with open(f"{path}.new", "wb") as file:
        torch.save({**state, "random": torch.get_rng_state()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


for step in range(first, 12):
    inputs = torch.randn(8, 16)
    loss = (model(inputs) - inputs).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step + 1} loss {loss.item():.6f}")
    if (step + 1) % 4 == 0:
        save(step + 1)
