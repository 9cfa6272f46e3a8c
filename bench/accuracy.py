"""What the search adds to nano-marco's accuracy, on the held-out questions of its report.

    python -m bench.accuracy --questions 200

Takes the tiers that `python -m marco_fast.models.evaluate --report` chose on validation questions,
searches the same test questions, and writes the shares with their 95% intervals into the same file.
At equal tokens: as many expansions, each with its rollout, as the report has samples a question.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from marco_fast import Engine, SearchConfig, SearchResult, solve
from marco_fast.models.evaluate import auroc, wilson
from marco_fast.models.questions import Question, is_correct, questions
from marco_fast.search.mcts import choose_answer

REPORT = Path(__file__).parent / "results" / "cpu" / "nano-marco.json"


def share(flags: Sequence[bool]) -> dict[str, float]:
    """How often it was right, with the Wilson interval."""
    low, high = wilson(sum(flags), len(flags))
    return {"share": sum(flags) / len(flags), "low": low, "high": high, "count": len(flags)}


def summary(asked: Sequence[Question], results: Sequence[SearchResult]) -> dict:
    """The three answer rules on the same trees, any finished path, tokens, AUROC of confidence."""
    right: dict[str, list[bool]] = {"value": [], "visits": [], "vote": [], "any": []}
    pairs = []
    for question, result in zip(asked, results, strict=True):
        for rule in ("value", "visits", "vote"):
            node = choose_answer(result.tree, result.answers, rule)
            ok = node is not None and is_correct(question, result.answers[node])
            right[rule].append(ok)
            if rule == "value":
                pairs.append((result.confidence, ok))
        right["any"].append(any(is_correct(question, each) for each in result.answers.values()))
    made = {rule: share(flags) for rule, flags in right.items()}
    made["tokens"] = sum(each.stats.tokens for each in results) / len(results)
    made["finished_paths"] = sum(len(each.answers) for each in results) / len(results)
    made["auroc"] = auroc(pairs)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy")
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--questions", type=int, default=200, help="a test and tier")
    parser.add_argument("--expansions", type=int, default=None, help="default: the samples")
    parser.add_argument("--c-uct", type=float, default=SearchConfig.c_uct)
    parser.add_argument("--normalize", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="search", help="key in the report")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    report = json.loads(args.report.read_text())
    settings = report["settings"]
    config = SearchConfig(
        expansions=args.expansions or settings["samples"],
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        seed=settings["seed"],
        c_uct=args.c_uct,
        normalize=args.normalize,
    )
    found: dict[str, dict] = {"settings": config.to_dict()}
    with Engine.from_pretrained("nano-marco") as engine:
        for tier, tests in report["test"].items():
            found[tier] = {}
            for test, row in tests.items():
                source = questions(test, row["level"], "test", seed=settings["seed"])
                asked = list(islice(source, args.questions))
                made = summary(asked, solve([each.text for each in asked], engine, config))
                found[tier][test] = made
                print(
                    f"{tier:4} {test:10} level {row['level']}: "
                    + ", ".join(f"{k} {made[k]['share']:.3f}" for k in ("value", "visits", "vote"))
                    + f", any {made['any']['share']:.3f}, {made['tokens']:.0f} tokens",
                    flush=True,
                )
    report[args.name] = found
    part = args.report.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(args.report)


if __name__ == "__main__":
    main()
