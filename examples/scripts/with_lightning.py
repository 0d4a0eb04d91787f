"""The loop of Lightning, with the checkpoints that it makes itself: `python with_lightning.py FOLDER`"""

import logging
import sys
import warnings

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
folder = sys.argv[1]


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 16)

    def training_step(self, batch: torch.Tensor, number: int) -> torch.Tensor:
        loss = (self.layer(batch) - batch).square().mean()
        print(f"step {self.global_step + 1} loss {loss.item():.6f}")
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


seed_everything(0, verbose=False)
batches = torch.randn(12, 8, 16)
saver = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=4, save_last="link")
trainer = Trainer(
    accelerator="cpu",
    max_epochs=1,
    callbacks=[saver],
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=folder,
)
trainer.fit(Module(), torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path="last")
