"""Runs of generate_data with a search that is not there, and what they read and write."""

import json
import random
import types
from pathlib import Path

from marco_fast.data.filters import Limits
from marco_fast.data.generate import generate_data, journal_of
from marco_fast.data.questions_file import read_questions
from marco_fast.forest.result import Progress, SearchResult, SearchStats
from marco_fast.search.answer import group_answers
from marco_fast.search.config import SearchConfig
from marco_fast.search.final import final_of
from marco_fast.search.mcts import Search
from marco_fast.search.replies import AUTO, format_of, parse_any

ROOT = Path(__file__).parents[2]
BYTES = [bytes([value]) for value in range(256)]
THOUGHT = "First the ones, then the tens, then both together make up the whole sum asked for."
OPEN = Limits(0, 10**9, 1, 0, 0)  # only form and reference answers count


class FakeEngine:
    """What a run asks of an engine; a token is a byte."""

    name, context, max_branches, dtype = "fake", 400, 4, "torch.float32"
    device = types.SimpleNamespace(type="cpu")
    cache = types.SimpleNamespace(num_pages=7, page_size=16)
    tokenizer = types.SimpleNamespace(all_special_tokens=["<|im_end|>"])

    def prompt_token_ids(self, messages, plain, options=None):
        return list("".join(each["content"] for each in messages).encode())


def reply(output: object, thought: str = THOUGHT) -> str:
    return f"<Thought>\n{thought}\n</Thought>\n<Output>\n{output}\n</Output>"


def searched(messages, paths, *, stop_reason="expansions", error=None) -> SearchResult:
    """A result whose paths have these texts and values, all ended by EOS; the best value wins."""
    count = max(1, len(paths))
    config = SearchConfig(expansions=count, children=count, answer="value")
    search, answers, finals = Search(messages[-1]["content"], config), {}, {}
    for text, value in paths:
        (ticket,) = search.ask()
        tokens = list(text.encode(errors="surrogateescape"))
        scores = [value] * len(tokens)
        answer = parse_any(text).answer
        node = search.grow(ticket, tokens, scores, scores, end="eos", finished=bool(answer))
        search.tell(ticket, value)
        if answer is not None:
            answers[node], finals[node] = answer, final_of(answer, messages[-1]["content"])
    groups = group_answers(search.tree, answers, finals, "value")
    best = groups[0].nodes[0] if groups else 0
    text = paths[best - 1][0] if groups else ""
    return SearchResult(
        question=messages[-1]["content"],
        messages=messages,
        answer=answers.get(best, ""),
        thought=parse_any(text).thought,
        reply=format_of(AUTO, text).name,
        final=finals.get(best, ""),
        finished=bool(groups),
        confidence=search.tree.end_value[best] if groups else 0.0,
        support=groups[0].support if groups else 0.0,
        answers=groups,
        tree=search.tree,
        path_answers=answers,
        answer_node=best,
        ends=[],
        stats=SearchStats(count, 0, len(answers), count, 0.0, len(paths), 0.0, 0.0, 0, 0),
        stop_reason=stop_reason,
        model="fake",
        prompt_token_ids=[1],
        config=config,
        token_bytes=BYTES,
        error=error,
    )


def fake_solve(chats, engine, config, *, progress, chat_template_kwargs=None):
    """Answers that depend on the questions searched beside: as those of a real search may."""
    beside = sum(len(chat[-1]["content"]) * place for place, chat in enumerate(chats, 2))
    results = []
    for place, chat in enumerate(chats):
        rng = random.Random(f"{chat[-1]['content']} {beside} {place}")
        output = chat[-1]["content"][-40:] + str(rng.randrange(10))
        paths = [(reply(output), rng.uniform(0.3, 1)), (reply(rng.random()), rng.uniform(0, 0.5))]
        results.append(searched(chat, paths))
    progress(snapshot(len(chats), len(chats)))
    return results


def snapshot(done: int, questions: int) -> Progress:
    return Progress(
        0, questions, done, None, "", "", 0.0, "", False, 0.0, 0, None, 1, 1, 5, 0.1, 1, 1.0
    )


def write_lines(path: Path, lines: list) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    return path


def make(source: Path, out: Path, engine=None, config=None, system=None, **options):
    engine, config = engine or FakeEngine(), config or SearchConfig()
    options = {"limits": OPEN, "batch": 3} | options
    questions = read_questions(source, engine, system=system)
    return generate_data(questions, out, engine, config, **options)


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def stopping_after(batches: int, stop=None):
    """A search that works for some batches, then does what `stop` does."""
    left = [batches]

    def search(chats, *arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            return stop(chats)
        return fake_solve(chats, *arguments, **options)

    return search


def fail(chats):
    raise RuntimeError("no such luck")


def interrupted_run(solve, source, out, batches=5):
    solve(stopping_after(batches, fail))
    make(source, out)
    solve(fake_solve)
    return journal_of(out)


def real_questions(path: Path) -> Path:
    """Eight questions that a bundled model answers."""
    words = ("strawberry", "cheese", "moon", "letter", "banana", "tomato", "kettle", "ladder")
    lines = [{"question": f"How many times does the letter e occur in {word}?"} for word in words]
    return write_lines(path, lines)
