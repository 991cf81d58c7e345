"""TRL's SFT on conversations, held by a map so that general loss may rise by one percent.

    python examples/sft_chat.py BASE MAP GENERAL.jsonl CHATS.jsonl OUTPUT [MAX_STEPS]

BASE is a model with a chat template, MAP an importance map that was measured at its base weights (such as
fitted/run/curvature_kronecker/map of `alora fit`), each a folder or Hub id. A line of GENERAL.jsonl has a ``text``, one of
CHATS.jsonl ``messages``. TRL is an extra: ``pip install -c constraints.txt '.[trl]'``.
"""

from __future__ import annotations

import sys

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from alora_trainer import ALoRAConfig, ALoRASFTTrainer, ImportanceMap


def main() -> None:
    base, importance, general, chats, output = sys.argv[1:6]
    steps = int(sys.argv[6]) if len(sys.argv) > 6 else 200
    held = ImportanceMap.from_pretrained(importance)
    if not held.at_base:
        sys.exit(
            f"{importance} was recorded in a training: see examples/launch/protect.py, which starts from its adapter"
        )
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = load_dataset("json", data_files=general, split="train")
    texts = texts.map(
        lambda row: tokenizer(row["text"], truncation=True, max_length=256), remove_columns=texts.column_names
    )
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=list(held))
    trainer = ALoRASFTTrainer(
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora),
        args=SFTConfig(output, max_steps=steps, max_length=1024, learning_rate=2e-4, bf16=False, report_to="none"),
        train_dataset=load_dataset("json", data_files=chats, split="train"),
        processing_class=tokenizer,
        importance=held,
        alora=ALoRAConfig(budget=0.01, probe_steps=max(1, steps // 10)),
        probe_dataset=texts.select(range(min(64, len(texts)))),
    )
    trainer.train()
    trainer.save_model(f"{output}/adapter")  # an ordinary PEFT adapter


if __name__ == "__main__":
    main()
