"""llama.cpp through its C interface: the tree of llama_tree.py."""

import ctypes
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf_file import write_gguf
from llama_tree import NOTE, Tree, sequences_of
from protocol import Options, Peer, Ready, Schedule, serve

# Weights, then the KV: the fastest of bfloat16 and float16 on a CPU with bfloat16 instructions.
TYPES = {"float32": ("F32", "F32"), "bfloat16": ("BF16", "F16")}
LOAD_MODE_NONE = 0  # of llama.h; no mapping of the file
ARITHMETIC = {"float32": "float32", "bfloat16": "bfloat16 products accumulated in float32"}


class LlamaCpp:
    """llama-cpp-python as llama_tree.Library."""

    def __init__(self, file: Path, schedule: Schedule, threads: int, kv: str) -> None:
        import llama_cpp

        self.c = llama_cpp
        self.schedule, self.threads, self.kv = schedule, threads, kv
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.load_mode = LOAD_MODE_NONE  # the file may be gone later
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        if not self.model:
            raise RuntimeError("llama.cpp could not load the model; its reason is on stderr")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        self.tokens = max(schedule.branches, len(schedule.prompt))  # of the largest batch
        self._make_batch()
        self.context: Any = None
        # 12 layers on 2 cores, seconds with and without: float32 3.4 and 3.2 with 8 branches,
        # bfloat16 2.4 and 2.1; with 32, two noisy replays each, 14.1 and 11.3, 6.7 and 7.6.
        self.make_context(flash=kv == "F16" and schedule.branches >= 32)

    def make_context(self, *, flash: bool) -> None:
        """As Library.make_context."""
        if self.context:
            self.c.llama_free(self.context)
        self.flash = flash
        self.context = self.c.llama_init_from_model(self.model, self._parameters())
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context; its reason is on stderr")
        self.memory = self.c.llama_get_memory(self.context)

    def _parameters(self) -> Any:
        sequences = sequences_of(self.schedule)
        if sequences > (most := self.c.llama_max_parallel_sequences()):
            raise ValueError(f"expected at most {most} leaves, got {sequences}")
        parameters = self.c.llama_context_default_params()
        parameters.n_ctx = len(self.schedule.prompt) + self.schedule.tokens
        parameters.n_batch = self.tokens
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

    def _make_batch(self) -> None:
        self.batch = self.c.llama_batch_init(self.tokens, 0, 1)
        view, shape = np.ctypeslib.as_array, (self.tokens,)
        self.ids = view(self.batch.token, shape)
        self.positions = view(self.batch.pos, shape)
        self.wanted = view(self.batch.logits, shape)
        view(self.batch.n_seq_id, shape)[:] = 1
        # Each token's list of sequences has one entry; this is that entry of all of them.
        self.sequences = np.zeros(self.tokens, np.int32)
        base, size = self.sequences.ctypes.data, self.sequences.itemsize
        kind = ctypes.POINTER(ctypes.c_int32)
        for i in range(self.tokens):
            self.batch.seq_id[i] = ctypes.cast(base + i * size, kind)

    def clear(self) -> None:
        """As Library.clear."""
        self.c.llama_memory_clear(self.memory, False)

    def copy(self, source: int, target: int, length: int) -> None:
        """As Library.copy."""
        self.c.llama_memory_seq_cp(self.memory, source, target, 0, length)

    def decode(
        self, ids: np.ndarray, positions: np.ndarray, sequences: np.ndarray, wanted: np.ndarray
    ) -> np.ndarray:
        """As Library.decode."""
        tokens = len(ids)
        self.ids[:tokens], self.positions[:tokens] = ids, positions
        self.sequences[:tokens], self.wanted[:tokens] = sequences, wanted
        self.batch.n_tokens = tokens
        if code := self.c.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode of {tokens} tokens returned {code}")
        return np.ctypeslib.as_array(
            self.c.llama_get_logits(self.context), (int(wanted.sum()), self.vocab_size)
        )


def load(options: Options) -> Peer:
    import llama_cpp

    weights, kv = TYPES[options.precision]
    if options.model.suffix == ".gguf":
        tree = Tree(
            LlamaCpp(options.model, options.schedule, options.threads, kv), options.schedule
        )
        tree.choose_attention()
        precision = f"weights as in the file, KV {kv}, llama.cpp's own arithmetic"
        precision += ", flash attention" * tree.library.flash
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.gguf")
            write_gguf(options.model, file, weights)
            library = LlamaCpp(file, options.schedule, options.threads, kv)
        tree = Tree(library, options.schedule)
        precision = f"weights {weights}, KV {kv}, arithmetic {ARITHMETIC[options.precision]}"
    version = f"llama-cpp-python {llama_cpp.__version__}"
    ready = Ready("llama.cpp", version, precision, True, tree.argmax(), NOTE)
    return Peer(ready, tree.replay)


if __name__ == "__main__":
    serve(load)
