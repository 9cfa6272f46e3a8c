"""Accuracy of a nano model on questions that it was not trained on.

    python -m marco_fast.models.evaluate marco_fast/models/nano-marco --count 40        a look
    python -m marco_fast.models.evaluate marco_fast/models/nano-marco \\
        --report bench/results/cpu/nano-marco.json                                      all of it

The report chooses two tiers of difficulty for each test on validation questions alone, then
measures them on test questions:
- easy: the highest level of at least 97.5% greedy accuracy with every lower level at 95% or more;
- hard: of the levels with 50% to 85% greedy accuracy (three are tried, the nearest to 70% first)
  the first where some of 16 samples is right in at least 92% of the questions, two points above
  what the tier is meant to have; where none is, the one where it is most often. A test without a
  level in that band has no hard tier: the model does all of it, or none.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Qwen2Config

from .decode import Decoder, Reply, replies
from .network import Network
from .questions import LEVELS, TESTS, Question, is_correct, questions
from .samples import prompt_text
from .tokenizer import replace_text

Model = tuple[Decoder, Tokenizer]
GOAL = 0.70  # greedy accuracy of the hard tier,
BAND = (0.50, 0.85)  # and where it may be
REACH = 0.92  # of the hard tier: some sample is right


@dataclass(frozen=True)
class Outcome:
    """The replies to one question: the greedy one first, then the samples."""

    question: Question
    replies: tuple[Reply, ...]

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether each reply is right."""
        return tuple(is_correct(self.question, output_of(r.text)) for r in self.replies)

    @property
    def majority(self) -> bool:
        """Whether the most frequent output of the samples (the first of equals) is right."""
        outputs = Counter(output_of(r.text).strip().lower() for r in self.replies[1:])
        return is_correct(self.question, outputs.most_common(1)[0][0])


def output_of(text: str) -> str:
    """What stands in the output part of a reply; empty where there is none."""
    found = re.search(r"<Output>(.*?)</Output>", text, re.DOTALL)
    return found[1] if found else ""


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion; 95% at z 1.96."""
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / total + spread / (4 * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def auroc(pairs: Sequence[tuple[float, bool]]) -> float | None:
    """How likely a right reply has the higher confidence than a wrong one; None: one kind only."""
    values, right = zip(*sorted(pairs), strict=True)
    good = sum(right)
    if not good or good == len(right):
        return None
    ranks: dict[float, list[int]] = {}
    for rank, value in enumerate(values, 1):
        ranks.setdefault(value, []).append(rank)
    total = sum(
        sum(ranks[v]) / len(ranks[v]) for v, ok in zip(values, right, strict=True) if ok
    )  # equal values share their mean rank
    return (total - good * (good + 1) / 2) / (good * (len(right) - good))


def load(folder: Path) -> Model:
    """A bundled model's folder, ready to decode."""
    config = Qwen2Config.from_pretrained(folder)
    network = Network(config)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Decoder(network, config.max_position_embeddings), tokenizer


def outcomes(
    decoder: Decoder,
    tokenizer: Tokenizer,
    asked: Sequence[Question],
    *,
    samples: int = 0,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> list[Outcome]:
    """A greedy reply and `samples` sampled ones to every question."""
    prompts = [prompt_text(question.text) for question in asked]
    batch = 200
    made = [
        many
        for i in range(0, len(prompts), batch)
        for many in replies(decoder, tokenizer, prompts[i : i + batch])
    ]
    few = max(1, 400 // samples) if samples else 0
    for i in range(0, len(prompts), few or len(prompts)):
        if samples:
            drawn = replies(
                decoder, tokenizer, prompts[i : i + few],
                samples=samples, temperature=temperature, top_p=top_p, seed=seed * 10007 + i,
            )  # fmt: skip
            for k, many in enumerate(drawn):
                made[i + k] = made[i + k] + many
    return [Outcome(q, tuple(many)) for q, many in zip(asked, made, strict=True)]


def summary(made: Sequence[Outcome]) -> dict:
    """Shares with 95% intervals, AUROC of the mean confidence, tokens of a greedy reply."""

    def share(flags: Sequence[bool]) -> dict:
        low, high = wilson(sum(flags), len(flags))
        return {"share": sum(flags) / len(flags), "low": low, "high": high, "count": len(flags)}

    result = {
        "greedy": share([one.right[0] for one in made]),
        "greedy_auroc": auroc([(o.replies[0].confidence, o.right[0]) for o in made]),
        "greedy_tokens": sum(o.replies[0].tokens for o in made) / len(made),
    }
    if len(made[0].replies) > 1:
        pairs = [
            (reply.confidence, ok)
            for o in made
            for reply, ok in zip(o.replies[1:], o.right[1:], strict=True)
        ]
        result |= {
            "samples": len(made[0].replies) - 1,
            "any": share([any(one.right[1:]) for one in made]),
            "majority": share([one.majority for one in made]),
            "one_sample": sum(ok for _, ok in pairs) / len(pairs),
            "sample_auroc": auroc(pairs),
        }
    return result


def take(test: str, level: int, split: str, count: int, seed: int) -> list[Question]:
    """The first `count` questions of a test's level."""
    return list(islice(questions(test, level, split, seed=seed), count))


def scan(model: Model, tests: Sequence[str], levels: Sequence[int], args) -> dict[str, dict]:
    """Summaries of validation or test questions by test and level, printed as they come."""
    table: dict[str, dict] = {}
    for test in tests:
        table[test] = {}
        for level in levels:
            asked = take(test, level, args.split, args.count, args.seed)
            made = outcomes(*model, asked, samples=args.samples, temperature=args.temperature)
            table[test][level] = summary(made)
            _print_row(test, level, table[test][level])
    return table


def _print_row(test: str, level: int, row: dict) -> None:
    line = f"{test:10} level {level} greedy {row['greedy']['share']:.3f}"
    if "any" in row:
        line += f" any {row['any']['share']:.3f} majority {row['majority']['share']:.3f}"
        line += f" one sample {row['one_sample']:.3f} AUROC {row['sample_auroc'] or 0:.2f}"
    print(line, flush=True)


def easy_level(greedy: dict[int, float]) -> int:
    """The easy tier's level, from the greedy accuracy of every level; see the module's text."""
    steady = [
        level
        for level in greedy
        if greedy[level] >= 0.975 and all(greedy[low] >= 0.95 for low in greedy if low < level)
    ]
    return max(steady, default=max(greedy, key=lambda level: greedy[level]))


def hard_order(greedy: dict[int, float]) -> list[int]:
    """The levels in the order in which they are tried as the hard tier's."""
    inside = [level for level in greedy if BAND[0] <= greedy[level] <= BAND[1]]
    return sorted(inside, key=lambda level: (abs(greedy[level] - GOAL), level))


def choose_tiers(model: Model, test: str, args: argparse.Namespace) -> tuple[dict, dict]:
    """({tier: level}, what was measured on validation questions) of one test."""
    rows, reached = {}, {}
    asked = {level: take(test, level, "validation", args.validation, args.seed) for level in LEVELS}
    for level in LEVELS:
        rows[level] = summary(outcomes(*model, asked[level]))
        _print_row(test, level, rows[level])
    greedy = {level: row["greedy"]["share"] for level, row in rows.items()}
    for level in hard_order(greedy)[:3]:
        made = outcomes(*model, asked[level], samples=args.samples, temperature=args.temperature)
        rows[level]["sampled"] = summary(made)
        _print_row(test, level, rows[level]["sampled"])
        reached[level] = rows[level]["sampled"]["any"]["share"]
        if reached[level] >= REACH:
            break
    levels = {"easy": easy_level(greedy)}
    if reached:
        levels["hard"] = hard_tier(reached)
    return levels, rows


def hard_tier(reached: dict[int, float]) -> int:
    """The first level that reaches far enough, else the one that reaches furthest."""
    enough = [level for level in reached if reached[level] >= REACH]
    return enough[0] if enough else max(reached, key=lambda level: reached[level])


def measure(model: Model, test: str, args: argparse.Namespace) -> tuple[dict, dict]:
    """({tier: what was measured on test questions}, the same of the validation questions)."""
    levels, chosen_on = choose_tiers(model, test, args)
    tiers = {}
    for tier, level in levels.items():
        asked = take(test, level, "test", args.count, args.seed)
        made = outcomes(*model, asked, samples=args.samples, temperature=args.temperature)
        tiers[tier] = {"level": level, **summary(made)}
        _print_row(f"{tier} {test}", level, tiers[tier])
    return tiers, chosen_on


def report(model: Model, args: argparse.Namespace) -> dict:
    """Tiers chosen on validation questions, measured on test questions; a thread a test."""
    torch.set_num_threads(1)
    with ThreadPoolExecutor(args.threads, initializer=lambda: torch.set_num_threads(1)) as pool:
        measured = dict(zip(TESTS, pool.map(lambda t: measure(model, t, args), TESTS), strict=True))
    tiers = {
        tier: {test: made[tier] for test, (made, _) in measured.items() if tier in made}
        for tier in ("easy", "hard")
    }
    chosen_on = {test: measured[test][1] for test in TESTS}
    settings = {
        "temperature": args.temperature, "top_p": 0.95, "samples": args.samples,
        "seed": args.seed, "questions": args.count, "validation_questions": args.validation,
        "arithmetic": "float32",
    }  # fmt: skip
    return {"settings": settings, "test": tiers, "validation": chosen_on}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m marco_fast.models.evaluate")
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument("--report", type=Path, help="measure everything, write this JSON file")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--levels", nargs="+", type=int, default=list(LEVELS))
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument("--count", type=int, default=200, help="questions of a test's level")
    parser.add_argument("--validation", type=int, default=100, help="the same, to choose tiers")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    model = load(args.folder)
    if args.report is None:
        scan(model, args.tests, args.levels, args)
        return
    args.report.parent.mkdir(parents=True, exist_ok=True)
    replace_text(args.report, json.dumps(report(model, args), indent=1) + "\n")


if __name__ == "__main__":
    main()
