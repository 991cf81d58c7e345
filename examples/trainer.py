"""A Trainer of one's own, held by a map: record on general text, then tune so that its loss may rise by one percent.

    python examples/trainer.py BASE GENERAL.jsonl DOMAIN.jsonl OUTPUT [MAX_STEPS]

BASE is a model (folder or Hub id); both files have a ``text`` a line. OUTPUT/adapter is an ordinary PEFT adapter.
"""

from __future__ import annotations

import sys

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, TrainingArguments

from alora_trainer import ALoRAConfig, ALoRATrainer


def main() -> None:
    base, general, domain, output = sys.argv[1:5]
    steps = int(sys.argv[5]) if len(sys.argv) > 5 else 200
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def read(file: str):
        rows = load_dataset("json", data_files=file, split="train")
        return rows.map(
            lambda row: tokenizer(row["text"], truncation=True, max_length=256), remove_columns=rows.column_names
        )

    texts = read(general).train_test_split(0.1, seed=0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    args = TrainingArguments(
        output, max_steps=steps, per_device_train_batch_size=8, learning_rate=2e-4, report_to="none"
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    recording = ALoRAConfig(record="projected")
    recorder = ALoRATrainer(model, args, train_dataset=texts["train"], data_collator=collator, alora=recording)
    recorder.train()
    recorder.recorded_importance.save_pretrained(f"{output}/map")  # for the next domain, or to share

    tuner = ALoRATrainer(
        model,
        args,
        train_dataset=read(domain),
        data_collator=collator,
        importance=recorder.recorded_importance,
        alora=ALoRAConfig(budget=0.01, probe_steps=max(1, steps // 10)),
        probe_dataset=texts["test"],
    )
    tuner.train()
    model.save_pretrained(f"{output}/adapter")


if __name__ == "__main__":
    main()
