"""The paper's table at small scale: what a search adds to the bundled models on six tests.

    python -m bench.reasoning --questions 200

Two tiers of difficulty a test are chosen on validation questions (bench/reasoning_tiers.py); then
every method answers the same held-out questions, one in four of them Chinese, and each answer goes
into a journal under --work: killed at any time, the same command goes on. At the end the journal is
summed up in --out (JSON), with tables and a reliability diagram beside it.

A method is a model with a SearchConfig. Greedy is a search of one expansion at temperature 0;
independent samples are a search in which every child of the root is a whole reply.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import marco_fast
from bench.reasoning_summary import reflections, summarise, write_tables
from bench.reasoning_tiers import choose_tiers, tier_questions
from marco_fast import Engine, SearchConfig, SearchResult, solve
from marco_fast.files import write_whole
from marco_fast.models.questions import TESTS, Question, is_correct
from marco_fast.search.mcts import canonical, choose_answer

OUT = Path(__file__).parent / "results" / "cpu" / "reasoning.json"
PATHS = 32  # samples, or expansions of a search: as many attempts as Test@32 needs
CHUNK = 25  # questions of one forest


class Method(NamedTuple):
    """A model and how it is asked."""

    model: str
    options: dict[str, Any]

    @property
    def config(self) -> SearchConfig:
        """The search that it is."""
        return SearchConfig(**self.options)


_WHOLE = {"step_tokens": 4096, "rollout_tokens": 0}
_GREEDY = {**_WHOLE, "temperature": 0.0, "expansions": 1, "children": 1}
_SEARCH: dict[str, Any] = {"expansions": PATHS}
METHODS = {
    "nano-llama, direct": Method("nano-llama", _GREEDY),
    "greedy": Method("nano-marco", _GREEDY),
    "greedy, reflection": Method("nano-marco", {**_GREEDY, "reflect": True}),
    "samples": Method(
        "nano-marco", {**_WHOLE, "expansions": PATHS, "children": PATHS, "parallel": PATHS}
    ),
    "search, step": Method("nano-marco", {**_SEARCH, "action": "step"}),
    "search, 64": Method("nano-marco", {**_SEARCH, "step_tokens": 64}),
    "search, 32": Method("nano-marco", {**_SEARCH, "step_tokens": 32}),
    "search, step, reflection": Method(
        "nano-marco", {**_SEARCH, "action": "step", "reflect": True}
    ),
    "search, 64, reflection": Method("nano-marco", {**_SEARCH, "step_tokens": 64, "reflect": True}),
    "search, 32, reflection": Method("nano-marco", {**_SEARCH, "step_tokens": 32, "reflect": True}),
    "search, 32, value of the rollout": Method(
        "nano-marco", {**_SEARCH, "step_tokens": 32, "value": "rollout"}
    ),
    "search, 32, normalised": Method(
        "nano-marco", {**_SEARCH, "step_tokens": 32, "normalize": True}
    ),
    "search, 32, normalised, c 0.3": Method(
        "nano-marco", {**_SEARCH, "step_tokens": 32, "normalize": True, "c_uct": 0.3}
    ),
}


def row(question: Question, result: SearchResult) -> dict[str, Any]:
    """What a result says, as the journal holds it; paths in the order in which they ended."""
    tree, paths = result.tree, []
    for node, text in sorted(result.answers.items()):
        paths.append(
            {
                "answer": canonical(text),
                "right": is_correct(question, text),
                "value": tree.end_value[node],
                "confidence": tree.path_confidence(node),
                "tokens": len(tree.path_token_ids(node)),
            }
        )
    nodes = {
        rule: choose_answer(tree, result.answers, rule) for rule in ("value", "visits", "vote")
    }
    best = nodes["value"]
    return {
        "language": question.language,
        "right": {
            rule: node is not None and is_correct(question, result.answers[node])
            for rule, node in nodes.items()
        },
        "confidence": None if best is None else tree.path_confidence(best),
        "paths": paths,
        "tokens": result.stats.tokens,
        "stop": result.stop_reason,
    }


def units(
    tiers: dict[str, dict[str, int]], count: int, methods: Sequence[str] = tuple(METHODS)
) -> Iterator[tuple[str, str, str, int]]:
    """(tier, test, method, first question) in the order of the work: every method early."""
    for begin in range(0, count, CHUNK):
        for method in methods:
            for tier, levels in tiers.items():
                for test in TESTS:
                    if test in levels:
                        yield tier, test, method, begin


def check_work(args: argparse.Namespace) -> None:
    """Refuses a journal of other weights or other questions."""
    models = Path(marco_fast.__file__).parent / "models"
    key = {"seed": args.seed, "validation": args.validation} | {
        name: hashlib.sha256((models / name / "model.safetensors").read_bytes()).hexdigest()
        for name in sorted({each.model for each in METHODS.values()})
    }
    path = args.work / "key.json"
    if path.exists() and json.loads(path.read_text()) != key:
        raise SystemExit(
            f"expected a journal of these weights, seed and validation in {args.work}, got one of "
            "others: remove it, or name another --work"
        )
    write_whole(path, json.dumps(key))


def read_journal(path: Path) -> dict[str, list[dict[str, Any]]]:
    """{unit: rows}; a line that a kill cut off is done again."""
    done: dict[str, list[dict[str, Any]]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            done[entry["unit"]] = entry["rows"]
    return done


class Engines:
    """The engine of a model, one at a time."""

    def __init__(self) -> None:
        self.name, self.engine = "", None

    def of(self, name: str) -> Engine:
        """The engine, loaded if it is not the last one asked for."""
        if name != self.name or self.engine is None:
            self.close()
            self.name, self.engine = name, Engine.from_pretrained(name)
        return self.engine

    def close(self) -> None:
        """Gives its memory back."""
        if self.engine is not None:
            self.engine.close()
        self.engine = None


def run(args: argparse.Namespace, tiers: dict[str, dict[str, int]], engines: Engines) -> dict:
    """Answers whatever the journal lacks; returns all of it."""
    path = args.work / "journal.jsonl"
    done = read_journal(path)
    wanted = list(units(tiers, args.questions, args.methods))
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with path.open("a", encoding="utf-8") as journal, Progress(*columns) as progress:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            journal.write("\n")
        task = progress.add_task("", total=len(wanted))
        for tier, test, method, begin in wanted:
            unit = f"{tier}/{test}/{method}/{begin}"
            progress.update(task, description=unit)
            if unit not in done:
                level = tiers[tier][test]
                end = min(begin + CHUNK, args.questions)
                asked = tier_questions(test, level, "test", end, args.seed)[begin:]
                engine = engines.of(METHODS[method].model)
                results = solve([each.text for each in asked], engine, METHODS[method].config)
                if any(each.stop_reason == "interrupted" for each in results):
                    raise KeyboardInterrupt
                done[unit] = [row(q, r) for q, r in zip(asked, results, strict=True)]
                journal.write(json.dumps({"unit": unit, "rows": done[unit]}) + "\n")
                journal.flush()
            progress.advance(task)
    return done


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.reasoning")
    parser.add_argument("--questions", type=int, default=200, help="a test and tier")
    parser.add_argument("--validation", type=int, default=100, help="a level, to choose tiers")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=Path(".bench/reasoning"), help="the journal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    check_work(args)
    began = time.monotonic()
    engines = Engines()
    try:
        chosen = choose_tiers(engines.of("nano-marco"), args)
        done = run(args, chosen["tiers"], engines)
    finally:
        engines.close()
    report = {
        "settings": {
            "questions": args.questions,
            "validation": args.validation,
            "seed": args.seed,
            "methods": {name: each._asdict() for name, each in METHODS.items()},
            "seconds": round(time.monotonic() - began),
        },
        **chosen,
        "results": summarise(done, chosen["tiers"], list(METHODS), args.questions, CHUNK),
        "reflection": reflections(done),
    }
    write_whole(args.out, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_tables(report, args.out)


if __name__ == "__main__":
    main()
