"""marco_fast itself as one of the peers: its scheduler, fed by a schedule instead of a search."""

import importlib

import torch
from protocol import Expansion, Options, Peer, Ready, Replay, Schedule, serve

NOTE = "Scheduler and Engine as solve() uses them; one batch a round"


class Rounds:
    """Hands out a round's expansions once all of the round before are done (scheduler.Source)."""

    def __init__(self, schedule: Schedule, segment: type, branch: type, verdict: type) -> None:
        self.schedule, self.branch, self.verdict = schedule, branch, verdict
        root = segment(None, 0, schedule.prompt[:-1], prompt=True)
        self.ends = {0: (root, schedule.prompt[-1])}  # node -> segment and newest token
        self.waiting = iter([each for one in schedule.rounds for each in one])
        self.following: Expansion | None = next(self.waiting, None)
        self.running = 0
        self.confidences: list[float] = []
        self.starts = {each[0].node for each in schedule.rounds[1:]}

    def next_branch(self) -> object | None:
        each = self.following
        if each is None or (each.node in self.starts and self.running):
            return None
        self.following = next(self.waiting, None)
        self.running += 1
        segment, newest = self.ends[each.parent]
        position = segment.start + len(segment.tokens)
        return self.branch(
            owner=each, segment=segment, pending=newest, position=position, seed=each.node
        )

    def on_token(self, branch: object) -> object:
        if len(branch.token_ids) < branch.owner.tokens:
            return self.verdict.CONTINUE
        self.ends[branch.owner.node] = (branch.segment, branch.pending)
        self.confidences += branch.confidences
        self.running -= 1
        return self.verdict.END

    def on_full(self, branch: object, full: Exception) -> None:
        raise full

    def on_step(self) -> bool:
        return True


def load(options: Options) -> Peer:
    import marco_fast
    from marco_fast.engine.branches import Branch, Segment, Verdict
    from marco_fast.engine.scheduler import Scheduler

    torch.set_num_threads(options.threads)
    if options.isa:
        importlib.import_module("marco_fast._C").set_isa(options.isa)
    schedule = options.schedule
    engine = marco_fast.Engine.from_pretrained(
        options.model, dtype=options.precision, activations=options.activations,
        max_branches=schedule.branches,
    )  # fmt: skip

    def run(what: Schedule, temperature: float) -> Rounds:
        source = Rounds(what, Segment, Branch, Verdict)
        drawn = {"temperature": temperature, "top_p": what.top_p, "top_k": what.top_k}
        scheduler = Scheduler(engine, source, drawn, what.branches)
        try:
            scheduler.run()
        finally:
            scheduler.close()
        return source

    def replay() -> Replay:
        confidences = run(schedule, schedule.temperature).confidences
        mean = sum(confidences) / len(confidences)
        return Replay(schedule.expansions, len(confidences), mean)

    first = Schedule(schedule.prompt, [[Expansion(1, 0, 1)]], 0.0, 1.0, 1)
    argmax = run(first, 0.0).ends[1][1]
    native = type(engine.runner).__name__ == "NativeRunner"
    runner = "one C++ call per step" if native else "transformers' layers"
    kept = options.model.suffix == ".gguf"
    weights = "weights as in the file, activations and KV" if kept else "weights and KV"
    precision = f"{weights} {options.precision}, sums float32; {runner}"
    if options.activations:
        precision += f"; quantised weights are multiplied by {options.activations}"
    version = f"{marco_fast.__version__}, torch {torch.__version__}"
    return Peer(Ready("marco_fast", version, precision, True, argmax, NOTE), replay)


if __name__ == "__main__":
    serve(load)
