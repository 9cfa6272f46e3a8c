"""llama.cpp through its C interface: a true tree in one KV cache, all branches in one decode.

A sequence of the cache is one root-to-leaf path; paths share the cells of their common tokens. The
first child of a node goes on in the node's own sequence and each further one in a copy of it, so a
node's cells can always be found in the sequence that it was decoded in, up to its own length.
"""

import ctypes
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gguf_file import write_gguf
from protocol import Expansion, Options, Peer, Ready, Replay, Schedule, serve

BLOCK = 64  # logits summed together before sampling looks at single ones
# Weights, then the KV: the fastest of bfloat16 and float16 on a CPU with bfloat16 instructions.
TYPES = {"float32": ("F32", "F32"), "bfloat16": ("BF16", "F16")}
LOAD_MODE_NONE = 0  # of llama.h; no mapping of the file
ARITHMETIC = {"float32": "float32", "bfloat16": "bfloat16 products accumulated in float32"}
NOTE = "one sequence a path, forked by seq_cp in a unified KV cache; sampling and top k in NumPy"


class Sampler:
    """Samples a batch of rows of logits and scores them, reusing one buffer."""

    def __init__(self, rows: int, vocab_size: int, schedule: Schedule) -> None:
        self.vocab_size = vocab_size
        self.blocks = -(-vocab_size // BLOCK)
        self.top_k, self.top_p = schedule.top_k, schedule.top_p
        self.temperature = schedule.temperature
        self.random = np.random.default_rng(0)
        # The padding of the last block changes no maximum and no sum.
        self.logits = np.full((rows, self.blocks * BLOCK), -np.inf, np.float32)
        self.weights = np.zeros_like(self.logits)

    def __call__(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids [rows], their logprobs [rows] and the best logprobs [rows, k], before temperature."""
        rows = np.arange(len(logits))[:, None]
        own, weights = self.logits[: len(logits)], self.weights[: len(logits)]
        own[:, : self.vocab_size] = logits
        best = self._best(own, rows)
        np.subtract(own, best[:, :1], out=own)
        lse = np.exp(own, out=weights).sum(1, keepdims=True)
        np.log(lse, out=lse)
        np.exp(np.divide(own, self.temperature, out=weights), out=weights)
        if self.top_p < 1:
            self._cut(weights, rows)
        ids = self._draw(weights, rows)
        return ids, own[rows[:, 0], ids] - lse[:, 0], best - best[:, :1] - lse

    def _best(self, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The k largest logits, descending: they are in the k blocks of the largest maxima."""
        blocks = logits.reshape(len(logits), self.blocks, BLOCK)
        k = min(self.top_k, self.blocks)
        where = np.argpartition(blocks.max(2), self.blocks - k, axis=1)[:, -k:]
        return np.sort(blocks[rows, where].reshape(len(logits), -1), axis=1)[
            :, : -self.top_k - 1 : -1
        ]

    def _cut(self, weights: np.ndarray, rows: np.ndarray) -> None:
        """Zero the weights outside the smallest set of tokens that holds top_p of all weight."""
        order = np.argsort(-weights, axis=1)
        ordered = weights[rows, order]
        before = ordered.cumsum(1, dtype=np.float64) - ordered
        ordered[before >= self.top_p * before[:, -1:]] = 0
        weights[rows, order] = ordered

    def _draw(self, weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """One index per row, drawn in proportion to the weights: a block, then an entry of it."""
        blocks = weights.reshape(len(weights), self.blocks, BLOCK)
        ends = blocks.sum(2).cumsum(1, dtype=np.float64)
        target = self.random.random((len(weights), 1)) * ends[:, -1:]
        block = (ends > target).argmax(1)[:, None]
        begin = np.where(block > 0, ends[rows, block - 1], 0)
        inside = begin + blocks[rows[:, 0], block[:, 0]].cumsum(1, dtype=np.float64)
        # Rounding may leave the target past the last sum: then the heaviest token is taken.
        passed = inside > target
        chosen = np.where(
            passed.any(1), passed.argmax(1), blocks[rows[:, 0], block[:, 0]].argmax(1)
        )
        return block[:, 0] * BLOCK + chosen


class Engine:
    """A model, one context, and during a replay the sequence and the logits of each node."""

    def __init__(self, options: Options) -> None:
        import llama_cpp

        self.c = llama_cpp
        self.schedule, self.threads = options.schedule, options.threads
        self.lengths = self.schedule.lengths
        weights, self.kv = TYPES[options.precision]
        llama_cpp.llama_backend_init()
        if options.model.suffix == ".gguf":
            self._load(options.model)
        else:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "model.gguf")
                write_gguf(options.model, file, weights)
                self._load(file)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        self.sample = Sampler(self.schedule.branches, self.vocab_size, self.schedule)
        self._make_batch(max(self.schedule.branches, len(self.schedule.prompt)))
        self.context: Any = None
        # 12 layers on 2 cores, seconds with and without: float32 3.4 and 3.2 with 8 branches,
        # bfloat16 2.4 and 2.1; with 32, two noisy replays each, 14.1 and 11.3, 6.7 and 7.6.
        self.make_context(flash=self.kv == "F16" and self.schedule.branches >= 32)

    def _load(self, file: Path) -> None:
        """Read all weights into memory: the file may be gone later."""
        parameters = self.c.llama_model_default_params()
        parameters.load_mode = LOAD_MODE_NONE
        self.model = self.c.llama_model_load_from_file(str(file).encode(), parameters)
        if not self.model:
            raise RuntimeError("llama.cpp could not load the model; its reason is on stderr")

    def make_context(self, *, flash: bool) -> None:
        """An empty KV cache in the place of the one before, with or without flash attention."""
        if self.context:
            self.c.llama_free(self.context)
        self.flash = flash
        self.context = self.c.llama_init_from_model(self.model, self._parameters())
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context; its reason is on stderr")
        self.memory = self.c.llama_get_memory(self.context)

    def choose_attention(self) -> None:
        """Keep flash attention or do without it, whichever replays faster."""
        seconds = {}
        for flash in (False, True):
            self.make_context(flash=flash)
            self.argmax()
            start = time.perf_counter()
            self.replay()
            seconds[flash] = time.perf_counter() - start
        if seconds[False] < seconds[True]:
            self.make_context(flash=False)

    def _parameters(self) -> Any:
        sequences = sequences_of(self.schedule)
        if sequences > (most := self.c.llama_max_parallel_sequences()):
            raise ValueError(f"expected at most {most} leaves, got {sequences}")
        parameters = self.c.llama_context_default_params()
        parameters.n_ctx = len(self.schedule.prompt) + self.schedule.tokens
        parameters.n_batch = max(self.schedule.branches, len(self.schedule.prompt))
        parameters.n_seq_max = sequences
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.type_k = parameters.type_v = getattr(self.c, f"GGML_TYPE_{self.kv}")
        parameters.flash_attn_type = (
            self.c.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if self.flash
            else self.c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        parameters.no_perf = True
        return parameters

    def _make_batch(self, tokens: int) -> None:
        self.batch = self.c.llama_batch_init(tokens, 0, 1)
        view = np.ctypeslib.as_array
        self.ids = view(self.batch.token, (tokens,))
        self.positions = view(self.batch.pos, (tokens,))
        self.wanted = view(self.batch.logits, (tokens,))
        view(self.batch.n_seq_id, (tokens,))[:] = 1
        # Each token's list of sequences has one entry; this is that entry of all of them.
        self.sequence_of = np.zeros(tokens, np.int32)
        base, size = self.sequence_of.ctypes.data, self.sequence_of.itemsize
        kind = ctypes.POINTER(ctypes.c_int32)
        for i in range(tokens):
            self.batch.seq_id[i] = ctypes.cast(base + i * size, kind)

    def argmax(self) -> int:
        self._forget()
        self._complete([0])
        return int(self.logits[0].argmax())

    def replay(self) -> Replay:
        self._forget()
        for expansions in self.schedule.rounds:
            parents = {each.parent for each in expansions}
            self._complete([node for node in sorted(parents) if node not in self.logits])
            self._expand(self._fork(expansions))
        logprobs = np.concatenate([each[1] for each in self.records.values()])
        best = np.concatenate([each[2] for each in self.records.values()])
        confidence = np.exp(logprobs) / np.exp(best).sum(1)
        mean = float(confidence.mean())
        return Replay(len(self.records), len(logprobs), mean, round(self.sampling, 4))

    def _forget(self) -> None:
        self.c.llama_memory_clear(self.memory, False)
        self.sequence = {0: 0}
        self.sequences, self.sampling = 1, 0.0
        self.taken: set[int] = set()  # nodes whose own sequence a child continues
        self.unread = {0: np.array(self.schedule.prompt)}
        self.logits: dict[int, np.ndarray] = {}  # [vocab_size] after a node's last token
        self.records: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _complete(self, nodes: list[int]) -> None:
        """Decode what these nodes still lack: the whole prompt, or the newest token."""
        if not nodes:
            return
        counts = [len(self.unread[node]) for node in nodes]
        ends = np.cumsum(counts)
        self.ids[: ends[-1]] = np.concatenate([self.unread[node] for node in nodes])
        self.wanted[: ends[-1]] = 0
        self.wanted[ends - 1] = 1
        for node, end, count in zip(nodes, ends, counts, strict=True):
            length = self.lengths[node]
            self.positions[end - count : end] = np.arange(length - count, length)
            self.sequence_of[end - count : end] = self.sequence[node]
        rows = self._decode(int(ends[-1]), len(nodes))
        self.logits |= {node: row.copy() for node, row in zip(nodes, rows, strict=True)}

    def _fork(self, expansions: list[Expansion]) -> list[Expansion]:
        """Give each child a sequence with its parent's path; returns the longest children first."""
        for node, parent, _ in expansions:
            self.sequence[node] = self.sequence[parent]
            if parent in self.taken:
                self.sequence[node] = self.sequences
                self.sequences += 1
                self.c.llama_memory_seq_cp(
                    self.memory,
                    self.sequence[parent],
                    self.sequence[node],
                    0,
                    self.lengths[parent],
                )
            self.taken.add(parent)
        return sorted(expansions, key=lambda each: -each.tokens)

    def _expand(self, expansions: list[Expansion]) -> None:
        """Sample below each parent; a child that has its tokens leaves the end of the batch."""
        tokens = np.array([each.tokens for each in expansions])
        active = len(expansions)
        self.sequence_of[:active] = [self.sequence[each.node] for each in expansions]
        self.positions[:active] = [self.lengths[each.parent] for each in expansions]
        self.wanted[:active] = 1
        logits = np.stack([self.logits[each.parent] for each in expansions])
        ids = np.zeros((active, tokens[0]), np.int32)
        logprobs = np.zeros((active, tokens[0]), np.float32)
        best = np.zeros((active, tokens[0], self.schedule.top_k), np.float32)
        for step in range(tokens[0]):
            if step:
                active = int((tokens > step).sum())
                self.ids[:active] = ids[:active, step - 1]
                logits = self._decode(active, active)
                self.positions[:active] += 1
            start = time.perf_counter()
            sampled = self.sample(logits)
            self.sampling += time.perf_counter() - start
            ids[:active, step], logprobs[:active, step], best[:active, step] = sampled
        for row, (node, _, count) in enumerate(expansions):
            self.unread[node] = ids[row, count - 1 : count]
            self.records[node] = (ids[row, :count], logprobs[row, :count], best[row, :count])

    def _decode(self, tokens: int, outputs: int) -> np.ndarray:
        """Logits [outputs, vocab_size], in llama.cpp's own memory until the next decode."""
        self.batch.n_tokens = tokens
        if code := self.c.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode of {tokens} tokens returned {code}")
        return np.ctypeslib.as_array(
            self.c.llama_get_logits(self.context), (outputs, self.vocab_size)
        )


def sequences_of(schedule: Schedule) -> int:
    """How many sequences a replay uses: one per leaf, or one where nothing is expanded."""
    parents = {each.parent for one in schedule.rounds for each in one}
    nodes = {each.node for one in schedule.rounds for each in one}
    return max(1, len(nodes - parents))


def load(options: Options) -> Peer:
    import llama_cpp

    engine = Engine(options)
    weights, kv = TYPES[options.precision]
    if options.model.suffix == ".gguf":
        engine.choose_attention()
        precision = f"weights as in the file, KV {kv}, llama.cpp's own arithmetic"
        precision += ", flash attention" * engine.flash
    else:
        precision = f"weights {weights}, KV {kv}, arithmetic {ARITHMETIC[options.precision]}"
    version = f"llama-cpp-python {llama_cpp.__version__}"
    ready = Ready("llama.cpp", version, precision, True, engine.argmax(), NOTE)
    return Peer(ready, engine.replay)


if __name__ == "__main__":
    serve(load)
