"""Fine-tune nano-marco on what its own tree search found: questions, data, training, accuracy.

    pip install trl
    python examples/finetune.py --work /tmp/finetune

On a CPU, without a network.
"""

import argparse
import json
import random
import shutil
from itertools import islice
from pathlib import Path

import torch
import transformers
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

import marco_fast as mf
from marco_fast.comparison.statistics import Share
from marco_fast.data.filters import Limits
from marco_fast.data.generate import generate_data
from marco_fast.data.questions_file import read_questions
from marco_fast.questions.questions import LEVELS, TESTS, Question, is_correct, questions

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--questions", type=int, default=480, help="to search (default 480)")
parser.add_argument("--steps", type=int, default=60, help="of training (default 60)")
parser.add_argument("--test", type=int, default=240, help="held-out questions (default 240)")
parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
options = parser.parse_args()
options.work.mkdir(parents=True, exist_ok=True)
source = Path(mf.__file__).parent / "models" / "nano-marco"
tuned = options.work / "nano-marco-tuned"


def draw(split: str, count: int) -> list[Question]:
    """Questions of every test and level in turn; what is in one split is never in another."""
    streams = [questions(test, level, split, seed=7) for level in LEVELS for test in TESTS]
    rounds = -(-count // len(streams))
    drawn = [one for stream in streams for one in islice(stream, rounds)]
    random.Random(7).shuffle(drawn)
    return drawn[:count]


def greedy(model: Path, asked: list[Question]) -> list[bool]:
    """Which questions the model answers right when it always takes the most likely token."""
    config = mf.SearchConfig(expansions=1, temperature=0, rollout_tokens=900)
    with mf.Engine.from_pretrained(model) as engine:
        results = mf.solve([each.text for each in asked], engine, config)
    pairs = zip(asked, results, strict=True)
    return [is_correct(question, result.answer) for question, result in pairs]


# 1. Questions with their answers, one JSON object a line.
asked = options.work / "questions.jsonl"
with asked.open("w", encoding="utf-8") as file:
    for index, each in enumerate(draw("train", options.questions)):
        line = {"id": f"{each.test}-{index}", "question": each.text, "answer": each.answer}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")

# 2. Search them; keep right answers on which at least some paths agree. The same as
#    marco-fast generate-data questions.jsonl --out data.jsonl --expansions 16 --min-agreement 0.1
data = options.work / "data.jsonl"
with mf.Engine.from_pretrained(source) as engine:
    made = generate_data(
        read_questions(asked, engine), data, engine, mf.SearchConfig(expansions=16),
        limits=Limits(min_agreement=0.1), restart=data.exists(),
    )  # fmt: skip
refused = ", ".join(f"{name} {count}" for name, count in made.refused.items() if count)
print(f"searched {made.done} questions: kept {made.kept}, refused: {refused or 'none'}")
if not made.kept:
    raise SystemExit("expected at least one reply to train on, got none")

# 3. Train on the replies. The loss counts what stands between the generation marks alone; the text
#    that this template writes is the model's own template's, byte for byte.
template = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Not AutoTokenizer, which takes the class of the Qwen2 family and cuts some text otherwise.
tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(source, chat_template=template)
# In float32: bfloat16 would round away most steps of so small a learning rate.
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

# 4. A folder that Engine.from_pretrained loads: safetensors in bfloat16 like the source, the tied
#    embedding stored once, and the tokenizer's files as they are (with the model's own template).
model.to(torch.bfloat16).save_pretrained(tuned)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(source / name, tuned / name)

# 5. The same held-out questions before and after.
held_out = draw("test", options.test)
before, after = greedy(source, held_out), greedy(tuned, held_out)
for name, flags in (("before", before), ("after", after)):
    share = Share.of(flags)
    print(
        f"{name:>6}: {share.right} of {len(flags)} right greedily, {100 * share.share:.1f}% "
        f"(95% interval {100 * share.low:.1f} to {100 * share.high:.1f})"
    )
gained = sum(new and not old for old, new in zip(before, after, strict=True))
lost = sum(old and not new for old, new in zip(before, after, strict=True))
print(f"{gained} became right, {lost} became wrong")
# Of the questions that changed, as many gains as losses are what no effect would give.
low, high = Share.of([True] * gained + [False] * lost)[2:]
print("a difference beyond chance" if not low <= 0.5 <= high else "no difference beyond chance")
print(f"the tuned model is in {tuned}")
