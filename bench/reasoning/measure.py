"""The paper's table at small scale: what a search adds to the bundled models on six tests.

    python -m bench.reasoning.measure --questions 200

Two tiers of difficulty per test are chosen on validation questions (bench/reasoning/tiers.py); then
every method answers the same held-out questions, one in four of them Chinese, and each answer goes
into a journal under --work: killed at any time, the same command goes on. At the end the journal is
summed up in --out (JSON), with tables and a reliability diagram beside it.

A method is a model with a SearchConfig. Greedy is a search of one expansion at temperature 0;
independent samples are a search in which every child of the root is a whole reply.
"""

import argparse
import functools
import hashlib
import json
import signal
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import marco_fast
from bench.reasoning.summary import reflections, summarise
from bench.reasoning.tables import write_tables
from bench.reasoning.tiers import Map, choose_tiers, tier_questions
from marco_fast import Engine, SearchConfig, SearchResult, solve
from marco_fast.files import write_whole
from marco_fast.questions.questions import TESTS, Question, is_correct
from marco_fast.search.answer import choose_answer

OUT = Path(__file__).parents[1] / "results" / "cpu" / "reasoning.json"
PATHS = 32  # samples, or expansions of a search: as many attempts as Test@32 needs
BATCH = 25  # questions that are searched together


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
_SEARCH: dict[str, Any] = {"expansions": PATHS, "rollout_tokens": 1024}  # to the end of any reply
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
    """A result as an entry of the journal; paths in the order in which they ended."""
    tree, answers, paths = result.tree, result.path_answers, []
    finals = {node: group.final for group in result.answers for node in group.nodes}
    for node, final in sorted(finals.items()):
        paths.append(
            {
                "answer": final,
                "right": is_correct(question, answers[node]),
                "value": tree.end_value[node],
                "confidence": tree.path_confidence(node),
                "tokens": len(tree.path_token_ids(node)),
            }
        )
    nodes = {
        rule: choose_answer(tree, answers, finals, rule) for rule in ("value", "visits", "vote")
    }
    best = nodes["value"]
    return {
        "language": question.language,
        "right": {
            rule: node is not None and is_correct(question, answers[node])
            for rule, node in nodes.items()
        },
        "confidence": None if best is None else tree.path_confidence(best),
        "paths": paths,
        "tokens": result.stats.tokens,
        "stop": result.stop_reason,
    }


class Job(NamedTuple):
    """Some questions of one test and tier, for one method."""

    tier: str
    test: str
    level: int
    method: str
    begin: int
    end: int
    seed: int

    @property
    def unit(self) -> str:
        """Its name in the journal."""
        return f"{self.tier}/{self.test}/{self.method}/{self.begin}"


def jobs(args: argparse.Namespace, tiers: dict[str, dict[str, int]]) -> Iterator[Job]:
    """All jobs in their order: the first questions of every method come first."""
    for begin in range(0, args.questions, BATCH):
        end = min(begin + BATCH, args.questions)
        for method in args.methods:
            for tier, levels in tiers.items():
                for test in TESTS:
                    if test in levels:
                        yield Job(tier, test, levels[test], method, begin, end, args.seed)


@functools.cache
def engine_of(model: str) -> Engine:
    """The engine of a model, kept as long as this process."""
    return Engine.from_pretrained(model)


def answer(job: Job) -> tuple[Job, list[dict[str, Any]]]:
    """The job and its rows."""
    asked = tier_questions(job.test, job.level, "test", job.end, job.seed)[job.begin :]
    method = METHODS[job.method]
    results = solve([each.text for each in asked], engine_of(method.model), method.config)
    return job, [row(q, r) for q, r in zip(asked, results, strict=True)]


def start_worker() -> None:
    """Give a worker one thread, and leave Ctrl-C to the parent, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def check_work(args: argparse.Namespace) -> None:
    """Refuse a journal of other weights or other questions."""
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
    """{unit: rows}; lines that a kill cut off or that had other options are left out."""
    done: dict[str, list[dict[str, Any]]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            method = METHODS.get(entry["unit"].split("/")[2])
            if method is not None and method.options == entry["options"]:
                done[entry["unit"]] = entry["rows"]
    return done


def run(args: argparse.Namespace, tiers: dict[str, dict[str, int]], each: Map) -> dict[str, Any]:
    """Answer the jobs that the journal lacks; returns the rows of all jobs."""
    path = args.work / "journal.jsonl"
    done = read_journal(path)
    wanted = list(jobs(args, tiers))
    missing = [job for job in wanted if job.unit not in done]
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    with path.open("a", encoding="utf-8") as journal, Progress(*columns) as progress:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            journal.write("\n")
        task = progress.add_task("", total=len(wanted), completed=len(wanted) - len(missing))
        for job, rows in each(answer, missing):
            done[job.unit] = rows
            entry = {"unit": job.unit, "options": METHODS[job.method].options, "rows": rows}
            journal.write(json.dumps(entry) + "\n")
            journal.flush()
            progress.update(task, description=job.unit, advance=1)
    return done


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.reasoning.measure")
    parser.add_argument("--questions", type=int, default=200, help="per test and tier")
    parser.add_argument("--validation", type=int, default=100, help="per level, to choose tiers")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=Path(".bench/reasoning"), help="the journal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    check_work(args)
    # A small model leaves the second of two threads idle while Python works: two processes do
    # 1.3 times as much. Results depend on neither.
    with get_context("spawn").Pool(args.processes, start_worker) as pool:
        chosen = choose_tiers(args, pool.imap)
        done = run(args, chosen["tiers"], pool.imap_unordered)
    report = {
        "settings": {
            "questions": args.questions,
            "validation": args.validation,
            "seed": args.seed,
            "methods": {name: each._asdict() for name, each in METHODS.items()},
        },
        **chosen,
        "results": summarise(done, chosen["tiers"], list(METHODS), args.questions, BATCH),
        "reflection": reflections(done),
    }
    write_whole(args.out, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write_tables(report, args.out)


if __name__ == "__main__":
    main()
