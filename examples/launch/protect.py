"""Stage B of a training in as many processes as were launched: hold what an importance map says while tuning on a domain.

    torchrun --nproc_per_node 8 examples/launch/protect.py BASE MAP DOMAIN.jsonl OUTPUT

BASE is a model (folder or Hub id), MAP an importance map (folder or Hub id): one that was recorded in a training goes on with
its own adapter, one that was measured at the base weights gets a new one on the same weights. DOMAIN.jsonl has a ``text`` a
line. Any further ``--name value`` is a field of `transformers.TrainingArguments` or of `ALoRAConfig` (``--lam 0.1``). Without
a GPU, add ``--use_cpu true``.
"""

from __future__ import annotations

import sys

from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    TrainingArguments,
)

from alora_trainer import ALoRAConfig, ALoRATrainer, ImportanceMap


def main() -> None:
    base, importance, domain, output = sys.argv[1:5]
    parser = HfArgumentParser((TrainingArguments, ALoRAConfig))
    args, alora = parser.parse_args_into_dataclasses(["--output_dir", output, *sys.argv[5:]])
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = load_dataset("json", data_files=domain, split="train")
    with args.main_process_first():
        rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=512), remove_columns=["text"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    held = ImportanceMap.from_pretrained(importance)
    if held.at_base:
        adapted = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=list(held))
        )
    else:
        adapted = PeftModel.from_pretrained(model, importance, is_trainable=True)
    trainer = ALoRATrainer(
        adapted,
        args,
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        importance=held,
        alora=alora,
    )
    resume = args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if resume == "true" else resume)
    trainer.save_model(output)  # writes on the first process alone


if __name__ == "__main__":
    main()
