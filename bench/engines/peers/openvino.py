"""OpenVINO GenAI: continuous batching over paged KV with prefix caching.

It gives the logprob of each sampled token and no others, so there is no confidence.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from gguf_file import write_gguf
from protocol import Options, Peer, Ready, Replay, Schedule, serve

PAGE = 32  # tokens of a page on a CPU
PRECISIONS = {
    "float32": ("f32", "weights float16, KV float32, arithmetic float32"),
    "bfloat16": ("bf16", "weights float16, KV bfloat16, arithmetic bfloat16"),
}
NOTE = (
    "weights come through a GGUF file, where float32 is refused; one request per parent, its "
    "children as return sequences; logprobs of the sampled tokens only; the prefix cache cannot be "
    "emptied, so each replay changes the first token of the prompt"
)


class Engine:
    """A pipeline whose requests are the parents of a round."""

    def __init__(self, options: Options) -> None:
        import openvino_genai

        self.schedule = options.schedule
        self.replays = 0
        self.request = 0
        hint, self.precision = PRECISIONS[options.precision]
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = max(256, self.schedule.branches)
        scheduler.max_num_batched_tokens = 4096
        scheduler.num_kv_blocks = _pages(self.schedule)
        properties = {
            "INFERENCE_PRECISION_HINT": hint,
            "KV_CACHE_PRECISION": hint,
            "INFERENCE_NUM_THREADS": options.threads,
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.gguf")
            write_gguf(options.model, file, "F16")
            self.pipeline = openvino_genai.ContinuousBatchingPipeline(
                file, scheduler, "CPU", properties
            )

    def argmax(self) -> int:
        config = _config(1)
        config.do_sample = False
        return self._generate([(self.schedule.prompt, config)])[0][0].generated_ids[0]

    def replay(self) -> Replay:
        self.replays += 1
        paths = {0: [3 + self.replays % 100, *self.schedule.prompt[1:]]}
        self.logprobs: dict[int, list[float]] = {}
        for expansions in self.schedule.rounds:
            children: dict[tuple[int, int], list[int]] = {}
            for each in expansions:
                children.setdefault((each.parent, each.tokens), []).append(each.node)
            outputs = self._generate(
                [
                    (paths[parent], self._sampling(tokens, len(nodes)))
                    for (parent, tokens), nodes in children.items()
                ]
            )
            for ((parent, _), nodes), sequences in zip(children.items(), outputs, strict=True):
                for node, sequence in zip(nodes, sequences, strict=True):
                    paths[node] = paths[parent] + sequence.generated_ids
                    self.logprobs[node] = sequence.generated_log_probs
        done = Counter({node: len(logprobs) for node, logprobs in self.logprobs.items()})
        return Replay(len(done), done.total(), None)

    def _sampling(self, tokens: int, sequences: int) -> Any:
        config = _config(tokens)
        config.do_sample = True
        config.temperature = self.schedule.temperature
        config.top_p = self.schedule.top_p
        config.top_k = sys.maxsize  # all of them: the default of a sampling request is 50
        config.num_return_sequences = sequences
        config.rng_seed = self.request + 1
        return config

    def _generate(self, requests: list[tuple[list[int], Any]]) -> list[list[Any]]:
        """The finished sequences of each request, which all run together."""
        import numpy as np
        from openvino import Tensor

        handles = []
        for path, config in requests:
            self.request += 1
            ids = Tensor(np.array([path], dtype=np.int64))
            handles.append(self.pipeline.add_request(self.request, ids, config))
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        return [handle.read_all() for handle in handles]


def _config(tokens: int) -> Any:
    from openvino_genai import GenerationConfig

    config = GenerationConfig()
    config.max_new_tokens = tokens
    config.ignore_eos = True
    config.logprobs = 1
    return config


def _pages(schedule: Schedule) -> int:
    """Pages for two whole trees without sharing: one replay's pages are freed during the next."""
    nodes = [len(schedule.prompt)] + [each.tokens for one in schedule.rounds for each in one]
    return 2 * sum(-(-tokens // PAGE) + 2 for tokens in nodes)


def load(options: Options) -> Peer:
    import openvino_genai

    engine = Engine(options)
    version = openvino_genai.__version__
    ready = Ready("openvino-genai", version, engine.precision, False, engine.argmax(), NOTE)
    return Peer(ready, engine.replay)


if __name__ == "__main__":
    serve(load)
