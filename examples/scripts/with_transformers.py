"""The loop of transformers, with the checkpoints that it makes by itself: `python with_transformers.py FOLDER`"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here comes from the hub

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

folder = sys.argv[1]
torch.manual_seed(0)
sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
texts = torch.randint(32, (48, 16))
arguments = TrainingArguments(
    output_dir=folder,
    max_steps=8,
    per_device_train_batch_size=4,
    learning_rate=1e-2,
    save_steps=4,
    save_total_limit=1,
    logging_steps=1,
    disable_tqdm=True,
    report_to="none",
    use_cpu=True,
)
trainer = Trainer(model, arguments, train_dataset=[{"input_ids": text, "labels": text} for text in texts])
trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))
