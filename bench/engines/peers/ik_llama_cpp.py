"""ik_llama.cpp, a fork of llama.cpp with faster CPU kernels: the tree of llama_tree.py.

Weights are repacked for the CPU while they are loaded (its option --run-time-repack).
"""

import ctypes
import sys
from pathlib import Path

import numpy as np
from llama_tree import NOTE, Tree, sequences_of
from protocol import Options, Peer, Ready, Schedule, serve

HOME = Path(sys.prefix)  # the environment that bench.engines.install made: the shim lies there


class IkLlamaCpp:
    """ik_shim.cpp as llama_tree.Library."""

    def __init__(self, file: Path, schedule: Schedule, threads: int) -> None:
        self.c = ctypes.CDLL(str(HOME / "libshim.so"))
        self.c.shim_load.restype = ctypes.c_void_p
        self.c.shim_decode.restype = ctypes.POINTER(ctypes.c_float)
        self.schedule, self.threads = schedule, threads
        address = self.c.shim_load(str(file).encode())
        if not address:
            raise RuntimeError("ik_llama.cpp could not load the model; its reason is on stderr")
        self.engine = ctypes.c_void_p(address)
        self.vocab_size = self.c.shim_vocab_size(self.engine)
        self.make_context(flash=True)

    def make_context(self, *, flash: bool) -> None:
        """As Library.make_context."""
        self.flash = flash
        prompt = len(self.schedule.prompt)
        made = self.c.shim_context(
            self.engine,
            prompt + self.schedule.tokens,
            max(self.schedule.branches, prompt),
            sequences_of(self.schedule),
            self.threads,
            int(flash),
        )
        if not made:
            raise RuntimeError("ik_llama.cpp could not make a context; its reason is on stderr")

    def clear(self) -> None:
        """As Library.clear."""
        self.c.shim_clear(self.engine)

    def copy(self, source: int, target: int, length: int) -> None:
        """As Library.copy."""
        self.c.shim_copy(self.engine, source, target, length)

    def decode(
        self, ids: np.ndarray, positions: np.ndarray, sequences: np.ndarray, wanted: np.ndarray
    ) -> np.ndarray:
        """As Library.decode."""
        arrays = [each.ctypes.data for each in (ids, positions, sequences, wanted)]
        found = self.c.shim_decode(self.engine, len(ids), *map(ctypes.c_void_p, arrays))
        if not found:
            raise RuntimeError(f"llama_decode of {len(ids)} tokens failed")
        return np.ctypeslib.as_array(found, (int(wanted.sum()), self.vocab_size))


def load(options: Options) -> Peer:
    if options.model.suffix != ".gguf":
        raise ValueError(f"expected a GGUF file, got {options.model}")
    tree = Tree(IkLlamaCpp(options.model, options.schedule, options.threads), options.schedule)
    tree.choose_attention()
    precision = "weights as in the file, repacked, KV F16, its own arithmetic"
    precision += ", flash attention" * tree.library.flash
    version = (HOME / "commit").read_text().strip()
    ready = Ready("ik_llama.cpp", version, precision, True, tree.argmax(), NOTE)
    return Peer(ready, tree.replay)


if __name__ == "__main__":
    serve(load)
