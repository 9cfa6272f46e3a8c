"""transformers' generate: each round one call over its paths, padded on the left to one length."""

import torch
from protocol import Expansion, Options, Peer, Ready, Replay, serve

NOTE = (
    "generate() with output_logits, one call per round; the paths are read again from their first "
    "token, since generate keeps no KV between calls that differ in their rows"
)


class Engine:
    """A model and the schedule that it replays."""

    def __init__(self, options: Options) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(options.threads)
        self.schedule = options.schedule
        self.model = AutoModelForCausalLM.from_pretrained(
            options.model, dtype=getattr(torch, options.precision)
        ).eval()

    @torch.inference_mode()
    def grow(self, paths: list[list[int]], tokens: int, **sampling: object) -> tuple:
        """(new token ids of each path, [paths, tokens] logprobs, [paths, tokens, top_k] best)."""
        longest = max(map(len, paths))
        ids = torch.tensor([[0] * (longest - len(path)) + path for path in paths])
        mask = torch.tensor([[0] * (longest - len(path)) + [1] * len(path) for path in paths])
        out = self.model.generate(
            ids,
            attention_mask=mask,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            **sampling,
        )
        new = out.sequences[:, longest:]
        logprobs = torch.stack(out.logits, 1).float().log_softmax(-1)
        best = logprobs.topk(self.schedule.top_k).values
        return new.tolist(), logprobs.gather(2, new[..., None])[..., 0], best

    def replay(self) -> Replay:
        schedule = self.schedule
        paths, confidences = {0: schedule.prompt}, []
        sampling = {"temperature": schedule.temperature, "top_p": schedule.top_p, "top_k": 0}
        for expansions in schedule.rounds:
            for tokens in sorted({each.tokens for each in expansions}):
                alike: list[Expansion] = [each for each in expansions if each.tokens == tokens]
                parents = [paths[each.parent] for each in alike]
                new, logprobs, best = self.grow(parents, tokens, do_sample=True, **sampling)
                for each, ids in zip(alike, new, strict=True):
                    paths[each.node] = paths[each.parent] + ids
                confidences.append((logprobs.exp() / best.exp().sum(-1)).flatten())
        every = torch.cat(confidences)
        return Replay(schedule.expansions, len(every), float(every.mean()))


def load(options: Options) -> Peer:
    import transformers

    engine = Engine(options)
    argmax = engine.grow([options.schedule.prompt], 1, do_sample=False)[0][0][0]
    precision = f"weights, KV and arithmetic {options.precision}, softmax of the logits float32"
    version = f"{transformers.__version__}, torch {torch.__version__}"
    ready = Ready("transformers generate", version, precision, True, argmax, NOTE)
    return Peer(ready, engine.replay)


if __name__ == "__main__":
    serve(load)
