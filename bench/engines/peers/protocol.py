"""What the driver and every peer agree on: the schedule, and the lines that they exchange.

Standard library only, because each peer runs in an environment of its own. A peer is started as

    python bench/engines/peers/NAME.py --model DIR|FILE.gguf --precision float32|bfloat16 \\
        --threads N --schedule FILE [--isa NAME]

loads its engine, replays the schedule once untimed, prints one line of JSON that says what it is,
and answers each input line "run" with one line about one more replay. What the engine prints goes
to stderr.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

__all__ = ["Expansion", "Options", "Peer", "Ready", "Replay", "Schedule", "serve"]

# Peers are named after their engines, and a script's folder comes first on the path: there
# `import vllm` would find the peer. At the end of the path this module is still found, in spawned
# processes too.
_HERE = str(Path(__file__).resolve().parent)
if sys.path and str(Path(sys.path[0] or ".").resolve()) == _HERE:
    sys.path.append(sys.path.pop(0))


class Expansion(NamedTuple):
    """A node to add below `parent` by sampling `tokens` tokens."""

    node: int
    parent: int
    tokens: int


@dataclass(frozen=True)
class Schedule:
    """One search, to be replayed: node 0 is the prompt, the expansions of a round are independent.

    Attributes:
        prompt: token ids.
        rounds: expansions that may be decoded together; each parent belongs to an earlier round.
        temperature, top_p: how every token is sampled.
        top_k: how many of a position's best logprobs are wanted beside the token's own.
    """

    prompt: list[int]
    rounds: list[list[Expansion]]
    temperature: float
    top_p: float
    top_k: int

    @classmethod
    def load(cls, file: str | Path) -> "Schedule":
        """Read the JSON that bench.engines.schedule makes.

        Raises:
            ValueError: a parent belongs to no earlier round, or an expansion has no tokens.
        """
        fields = json.loads(Path(file).read_text())
        fields["rounds"] = [[Expansion(**each) for each in one] for one in fields["rounds"]]
        schedule = cls(**fields)
        known = {0}
        for one in schedule.rounds:
            if bad := [each for each in one if each.parent not in known or each.tokens < 1]:
                raise ValueError(f"expected a known parent and at least 1 token, got {bad[0]}")
            known |= {each.node for each in one}
        return schedule

    @property
    def expansions(self) -> int:
        return sum(map(len, self.rounds))

    @property
    def tokens(self) -> int:
        """Tokens sampled by one replay."""
        return sum(each.tokens for one in self.rounds for each in one)

    @property
    def branches(self) -> int:
        """Expansions of the largest round."""
        return max(map(len, self.rounds))

    @property
    def lengths(self) -> dict[int, int]:
        """Tokens from the root to the end of each node."""
        lengths = {0: len(self.prompt)}
        for one in self.rounds:
            lengths |= {each.node: lengths[each.parent] + each.tokens for each in one}
        return lengths

    def first(self, expansions: int) -> "Schedule":
        """The same search, ended after `expansions` expansions."""
        rounds, left = [], expansions
        for one in self.rounds:
            if left > 0:
                rounds.append(one[:left])
                left -= len(one)
        return replace(self, rounds=rounds)


class Options(NamedTuple):
    """The command line of a peer.

    Attributes:
        model: folder in the layout of transformers, or a GGUF file, whose weights stay as they are.
        precision: "float32" or "bfloat16", of weights, KV and arithmetic as far as the engine can.
        threads: of computation.
        schedule: what to replay.
        isa: the instructions that marco_fast may use, "" for all; other engines are built for them.
        activations: "int8": marco_fast rounds what quantised weights are multiplied by; or None.
    """

    model: Path
    precision: str
    threads: int
    schedule: Schedule
    isa: str = ""
    activations: str | None = None


class Ready(NamedTuple):
    """What a peer says of itself once it has loaded.

    Attributes:
        engine, version: name and version of the software.
        precision: of weights, KV and arithmetic, as really used.
        top_k: whether each token comes with the best logprobs of its position.
        argmax: most likely token after the prompt.
        note: what a reader of the numbers must know.
    """

    engine: str
    version: str
    precision: str
    top_k: bool
    argmax: int
    note: str


class Replay(NamedTuple):
    """What one replay did.

    mean_confidence is of p(token) / sum of the top k p, before temperature; None without top k.
    sampling_seconds is the part that the script itself spent on sampling, where it does.
    """

    expansions: int
    tokens: int
    mean_confidence: float | None
    sampling_seconds: float | None = None


class Peer(NamedTuple):
    """An engine that has loaded: what it is, and how to replay the schedule from nothing."""

    ready: Ready
    replay: Callable[[], Replay]


def serve(load: Callable[[Options], Peer], *, limit: int | None = None) -> None:
    """Be a peer: read the command line, load, warm up, then replay once for each line "run".

    Args:
        load: makes the peer.
        limit: how many expansions to replay unless --limit says otherwise; None is all.
    """
    answers = _claim_stdout()
    try:
        for answer in _conversation(load, _options(limit)):
            print(json.dumps(answer), file=answers, flush=True)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        print(json.dumps({"error": line[:500]}), file=answers, flush=True)
        answers.close()
        # Engines leave threads and processes behind that can keep an interpreter from ending.
        os._exit(1)


def _conversation(load: Callable[[Options], Peer], options: Options) -> Iterator[dict[str, Any]]:
    peer = load(options)
    peer.replay()
    yield {"ready": True, **peer.ready._asdict(), "threads": options.threads}
    for line in sys.stdin:
        if line.strip() != "run":
            raise ValueError(f'expected a line "run", got {line.strip()!r}')
        start = time.perf_counter()
        replay = peer.replay()
        yield {"seconds": time.perf_counter() - start, **replay._asdict()}


def _options(limit: int | None) -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--schedule", type=Path, required=True)
    parser.add_argument("--isa", default="")
    parser.add_argument("--activations", default=None)
    parser.add_argument("--limit", type=int, default=limit, help="replay only the first expansions")
    arguments = parser.parse_args()
    schedule = Schedule.load(arguments.schedule)
    if arguments.limit is not None:
        schedule = schedule.first(arguments.limit)
    # Before any engine is imported: most engines read the variable once, when they load.
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    model = arguments.model.resolve()
    return Options(
        model, arguments.precision, arguments.threads, schedule, arguments.isa,
        arguments.activations,
    )  # fmt: skip


def _claim_stdout() -> TextIO:
    """The standard output for answers alone: what libraries print goes to stderr from here on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers
