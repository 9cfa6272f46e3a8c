"""Fine-tune nano-marco on replies that its own tree search found, and measure the difference.

    pip install trl
    python examples/finetune.py --work /tmp/finetune

The example searches questions, keeps good replies, trains on them, and asks held-out questions
before and after. It needs neither a GPU nor a network.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import transformers
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

import marco_fast as mf

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--questions", type=int, default=480, help="questions to search (default 480)")
parser.add_argument("--steps", type=int, default=60, help="training steps (default 60)")
parser.add_argument("--test", type=int, default=240, help="held-out questions (default 240)")
parser.add_argument("--work", type=Path, required=True, help="folder for all files that are made")
options = parser.parse_args()
options.work.mkdir(parents=True, exist_ok=True)
source = Path(mf.__file__).parent / "models" / "nano-marco"
tuned = options.work / "nano-marco-tuned"


def greedy(model: Path, asked: list[mf.Question]) -> list[bool]:
    """Whether the model answers each question right if it always takes the most likely token."""
    config = mf.SearchConfig(expansions=1, temperature=0, rollout_tokens=900)
    with mf.Engine.from_pretrained(model) as engine:
        results = mf.solve([each.text for each in asked], engine, config)
    pairs = zip(asked, results, strict=True)
    return [mf.is_correct(question, result.answer) for question, result in pairs]


# 1. Questions with their answers, one JSON object per line. Content of the split "train" never
#    occurs in the split "test".
asked = options.work / "questions.jsonl"
with asked.open("w", encoding="utf-8") as file:
    for index, each in enumerate(mf.sample_questions("train", options.questions, seed=7)):
        line = {"id": f"{each.test}-{index}", "question": each.text, "answer": each.answer}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")

# 2. Search them, and keep right answers that at least a tenth of the votes agree on. The same as
#    marco-fast generate-data questions.jsonl --out data.jsonl --expansions 16 --min-agreement 0.1
data = options.work / "data.jsonl"
with mf.Engine.from_pretrained(source) as engine:
    made = mf.generate_data(
        mf.read_questions(asked, engine), data, engine, mf.SearchConfig(expansions=16),
        limits=mf.Limits(min_agreement=0.1), restart=data.exists(),
    )  # fmt: skip
refused = ", ".join(f"{name} {count}" for name, count in made.refused.items() if count)
print(f"searched {made.done} questions: kept {made.kept}, refused: {refused or 'none'}")
if not made.kept:
    raise SystemExit("expected at least one reply to train on, got none")

# 3. Train on the replies. The loss counts only the text between the generation marks. Apart from
#    these marks the template writes the same text as the model's own, byte for byte.
template = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# AutoTokenizer would take the class of the Qwen2 family, which cuts some text in another way.
tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(source, chat_template=template)
# The weights are in float32: at this learning rate bfloat16 would round most updates to zero.
model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=load_dataset(
        "json", data_files=str(data), split="train", cache_dir=str(options.work / "cache")
    ),
    args=SFTConfig(
        output_dir=str(options.work / "trainer"), max_steps=options.steps,
        per_device_train_batch_size=16, learning_rate=1e-4, lr_scheduler_type="cosine",
        warmup_steps=options.steps // 10, assistant_only_loss=True, max_length=1024, seed=7,
        save_strategy="no", report_to="none", logging_steps=max(1, options.steps // 5),
        bf16=False, use_cpu=True, disable_tqdm=True,
    ),
)  # fmt: skip
trainer.train()

# 4. Save a folder that Engine.from_pretrained loads: safetensors in bfloat16 like the source, with
#    the tied embedding stored once, and the source's tokenizer files (with its own template).
model.to(torch.bfloat16).save_pretrained(tuned)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(source / name, tuned / name)

# 5. Ask the same held-out questions before and after.
held_out = mf.sample_questions("test", options.test, seed=7)
before, after = greedy(source, held_out), greedy(tuned, held_out)
for name, flags in (("before", before), ("after", after)):
    share = mf.Share.of(flags)
    print(
        f"{name:>6}: {share.right} of {len(flags)} right greedily, {100 * share.share:.1f}% "
        f"(95% interval {100 * share.low:.1f} to {100 * share.high:.1f})"
    )
gained = sum(new and not old for old, new in zip(before, after, strict=True))
lost = sum(old and not new for old, new in zip(before, after, strict=True))
print(f"{gained} became right, {lost} became wrong")
# Without an effect, gains and losses are equally likely: is one half outside the interval?
low, high = mf.Share.of([True] * gained + [False] * lost)[2:]
print("a difference beyond chance" if not low <= 0.5 <= high else "no difference beyond chance")
print(f"the tuned model is in {tuned}")
