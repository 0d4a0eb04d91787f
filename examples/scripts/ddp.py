"""Data parallel training on several ranks: `torchrun --nproc-per-node 2 ddp.py FOLDER`

Rank 0 saves model and optimizer atomically.  Each rank has a random stream of its own, and saves it into a file of its
own, also atomically.  Every single file is right.
"""

import os
import sys

import torch
import torch.distributed as dist


def replace(state: object, path: str) -> None:
    with open(f"{path}.new", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


dist.init_process_group("gloo")
rank, folder = dist.get_rank(), sys.argv[1]
os.makedirs(folder, exist_ok=True)
path, own_path = os.path.join(folder, "checkpoint.pt"), os.path.join(folder, f"random-{rank}.pt")
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(16, 16))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
torch.manual_seed(rank)
first = 0
if os.path.exists(path):
    checkpoint = torch.load(path)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    torch.set_rng_state(torch.load(own_path))
    first = checkpoint["step"]

for step in range(first, 9):
    inputs = torch.randn(8, 16)
    loss = (model(inputs) - inputs).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    dist.all_reduce(loss.detach())
    if rank == 0:
        print(f"step {step + 1} loss {loss.item():.6f}")
    if (step + 1) % 3 == 0:
        replace(torch.get_rng_state(), own_path)
        dist.barrier()
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            replace(state, path)
        dist.barrier()
dist.destroy_process_group()
