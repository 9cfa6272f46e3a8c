"""Marco-o1's published way of decoding: the whole sequence through the model again for every token.

One expansion at a time and no KV kept from one token to the next. A replay of the whole schedule
would take far too long, so only its first expansions are replayed.
"""

import torch
from protocol import Options, Peer, Ready, Replay, serve

EXPANSIONS = 2
NOTE = (
    "no cache, one expansion at a time, logits of every position computed as in the published "
    "loop; replays only the first expansions, so their paths are the shortest ones"
)


class Engine:
    """A model and the paths sampled so far."""

    def __init__(self, options: Options) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(options.threads)
        self.schedule = options.schedule
        self.model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=getattr(torch, options.precision)
        ).eval()

    @torch.inference_mode()
    def argmax(self) -> int:
        return int(self.model(torch.tensor([self.schedule.prompt])).logits[0, -1].argmax())

    @torch.inference_mode()
    def replay(self) -> Replay:
        paths = {0: torch.tensor([self.schedule.prompt])}
        self.logprobs: list[torch.Tensor] = []  # [1] each
        self.best: list[torch.Tensor] = []  # [k] each
        for expansions in self.schedule.rounds:
            for each in expansions:
                paths[each.node] = self._expand(paths[each.parent], each.tokens)
        confidence = torch.cat(self.logprobs).exp() / torch.stack(self.best).exp().sum(1)
        return Replay(self.schedule.expansions, len(confidence), float(confidence.mean()))

    def _expand(self, path: torch.Tensor, tokens: int) -> torch.Tensor:
        """The path and the sampled tokens after it, [1, tokens] int64."""
        for _ in range(tokens):
            logits = self.model(path).logits[0, -1].float()
            logprobs = logits.log_softmax(-1)
            token = self._sample(logits)
            self.logprobs.append(logprobs[token])
            self.best.append(logprobs.topk(self.schedule.top_k).values)
            path = torch.cat([path, token[None]], 1)
        return path

    def _sample(self, logits: torch.Tensor) -> torch.Tensor:
        """An id, [1] int64."""
        weights = (logits / self.schedule.temperature).softmax(-1)
        if self.schedule.top_p == 1:
            return weights.multinomial(1)
        ordered, order = weights.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered >= self.schedule.top_p] = 0
        return order[ordered.multinomial(1)]


def load(options: Options) -> Peer:
    import transformers

    engine = Engine(options)
    precision = f"weights and arithmetic {options.precision}, softmax of the logits float32"
    version = f"{transformers.__version__}, torch {torch.__version__}"
    ready = Ready("published loop", version, precision, True, engine.argmax(), NOTE)
    return Peer(ready, engine.replay)


if __name__ == "__main__":
    serve(load, limit=EXPANSIONS)
