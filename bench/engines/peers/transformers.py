"""Transformers with PyTorch: each round one batch, the KV of earlier nodes kept and gathered.

A node keeps the KV of its own tokens. A round's batch starts from its parents' paths, assembled
from those pieces and padded on the left to one length; only the newest token of each parent is
still to be run, once for all its children.
"""

from typing import Any

import torch
from protocol import Expansion, Options, Peer, Ready, Replay, serve

NOTE = (
    "a loop over model.forward with the KV of every node kept, each round's paths gathered into "
    "one left-padded DynamicCache; attention is sdpa"
)


class Engine:
    """A model and, during a replay, the path, KV and logits of each node."""

    def __init__(self, options: Options) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(options.threads)
        self.schedule = options.schedule
        self.model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=getattr(torch, options.precision), attn_implementation="sdpa"
        ).eval()
        self._forget()

    def _forget(self) -> None:
        self.paths: dict[int, list[int]] = {0: [0]}  # nodes from the root
        self.unread: dict[int, torch.Tensor] = {0: torch.tensor(self.schedule.prompt)}
        self.kv: dict[int, torch.Tensor | None] = {
            0: None
        }  # [layers, 2, num_kv_heads, tokens, head_dim]
        self.logits: dict[int, torch.Tensor] = {}  # [vocab_size] after a node's last token
        self.records: dict[int, tuple[torch.Tensor, ...]] = {}

    @torch.inference_mode()
    def argmax(self) -> int:
        self._forget()
        self._complete([0])
        return int(self.logits[0].argmax())

    @torch.inference_mode()
    def replay(self) -> Replay:
        self._forget()
        for expansions in self.schedule.rounds:
            parents = {each.parent for each in expansions}
            self._complete([node for node in sorted(parents) if node not in self.logits])
            for tokens in sorted({each.tokens for each in expansions}):
                self._expand([each for each in expansions if each.tokens == tokens])
        logprobs = torch.cat([each[1] for each in self.records.values()])
        best = torch.cat([each[2] for each in self.records.values()])
        confidence = logprobs.exp() / best.exp().sum(-1)
        return Replay(len(self.records), len(logprobs), float(confidence.mean()))

    def _complete(self, nodes: list[int]) -> None:
        """Run the tokens of these nodes that no forward has read: prompt or newest token."""
        if not nodes:
            return
        cache, mask = self._gather([self.paths[node] for node in nodes])
        ids = torch.stack([self.unread[node] for node in nodes])
        logits = self._forward(ids, cache, mask)
        for row, node in enumerate(nodes):
            fresh = _layers(cache, row)[..., -ids.shape[1] :, :]
            self.kv[node] = _join([self.kv[node], fresh])
            self.unread[node] = ids[row, :0]
            self.logits[node] = logits[row]

    def _expand(self, expansions: list[Expansion]) -> None:
        """Sample equally many tokens below each parent; the last of them is left unread."""
        cache, mask = self._gather([self.paths[each.parent] for each in expansions])
        start = mask.shape[1]
        logits = torch.stack([self.logits[each.parent] for each in expansions])
        steps = []
        for step in range(expansions[0].tokens):
            if step:
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
                logits = self._forward(steps[-1][0], cache, mask)
            steps.append(self._sample(logits))
        ids, logprobs, best = (torch.stack(each, 1) for each in zip(*steps, strict=True))
        for row, (node, parent, _) in enumerate(expansions):
            self.paths[node] = [*self.paths[parent], node]
            self.unread[node] = ids[row, -1]
            self.kv[node] = _layers(cache, row)[..., start:, :] if len(steps) > 1 else None
            self.records[node] = (ids[row, :, 0], logprobs[row, :, 0], best[row])

    def _gather(self, paths: list[list[int]]) -> tuple[Any, torch.Tensor]:
        """A cache of the paths' KV, and which of its positions are real, [rows, tokens] int64."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        rows = [_join([self.kv[node] for node in path]) for path in paths]
        lengths = [0 if row is None else row.shape[3] for row in rows]
        mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
        if max(lengths):
            batch = rows[0].new_zeros(*rows[0].shape[:2], len(rows), *rows[0].shape[2:])
            batch = batch[..., :1, :].repeat_interleave(max(lengths), 4)
            for i, row in enumerate(rows):
                batch[:, :, i, :, max(lengths) - lengths[i] :] = row
            for layer, (keys, values) in enumerate(batch):
                cache.update(keys, values, layer)
        return cache, mask.long()

    def _forward(self, ids: torch.Tensor, cache: Any, mask: torch.Tensor) -> torch.Tensor:
        """Logits after the last of ids [rows, tokens]; the mask may include them already."""
        missing = cache.get_seq_length() + ids.shape[1] - mask.shape[1]
        mask = torch.cat([mask, mask.new_ones(len(mask), missing)], 1)
        positions = mask.cumsum(1)[:, -ids.shape[1] :] - 1
        return self.model(
            ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]

    def _sample(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids and their logprobs [rows, 1], the best logprobs [rows, k]; before temperature."""
        logprobs = logits.float().log_softmax(-1)
        best = logprobs.topk(self.schedule.top_k).values
        probabilities = (logprobs / self.schedule.temperature).softmax(-1)
        if self.schedule.top_p < 1:
            ordered, order = probabilities.sort(-1, descending=True)
            ordered[ordered.cumsum(-1) - ordered >= self.schedule.top_p] = 0
            ids = order.gather(1, ordered.multinomial(1))
        else:
            ids = probabilities.multinomial(1)
        return ids, logprobs.gather(1, ids), best


def _layers(cache: Any, row: int) -> torch.Tensor:
    """One row of a cache as a copy, [layers, 2, num_kv_heads, tokens, head_dim]."""
    return torch.stack([torch.stack([each.keys[row], each.values[row]]) for each in cache.layers])


def _join(pieces: list[torch.Tensor | None]) -> torch.Tensor | None:
    real = [piece for piece in pieces if piece is not None]
    if len(real) < 2:
        return real[0] if real else None
    return torch.cat(real, 3)


def load(options: Options) -> Peer:
    import transformers

    engine = Engine(options)
    precision = f"weights, KV and arithmetic {options.precision}, softmax of the logits float32"
    version = f"{transformers.__version__}, torch {torch.__version__}"
    ready = Ready("transformers", version, precision, True, engine.argmax(), NOTE)
    return Peer(ready, engine.replay)


if __name__ == "__main__":
    serve(load)
