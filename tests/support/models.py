"""Small randomly initialised models in folders, and the plain forward that checks every search."""

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from marco_fast.forest.result import SearchResult

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COMMON = {"num_hidden_layers": 2, "max_position_embeddings": 512, "initializer_range": 0.2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "qwen2": lambda **size: transformers.Qwen2Config(
        hidden_size=112, num_attention_heads=7, num_key_value_heads=1, intermediate_size=96, **size
    ),
    "llama3": lambda **size: transformers.LlamaConfig(
        hidden_size=96,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=96,
        rope_parameters=LLAMA3_ROPE,
        tie_word_embeddings=True,
        **size,
    ),
    "qwen3": lambda **size: transformers.Qwen3Config(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=48,
        intermediate_size=96,
        **size,
    ),
    "mistral": lambda **size: transformers.MistralConfig(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=96,
        sliding_window=None,
        **size,
    ),
}


def save_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer with ChatML; returns its size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["<Thought>\nthe answer is\n</Thought>\n<Output>\n"] * 4, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return len(fast)


def save_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """A model of that architecture with random weights; the folder it is in."""
    size = save_tokenizer(folder)
    torch.manual_seed(seed)
    # More logits than tokens, as in Qwen2, whose vocabulary is padded.
    config = CONFIGS[kind](vocab_size=size + 8, **COMMON)
    config.eos_token_id = 2
    model = transformers.AutoModelForCausalLM.from_config(config)
    # Biases and norms start at zero and one, which would hide a mistake in either.
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    model.save_pretrained(folder)
    return folder


class PlainForward:
    """The same model through transformers alone, one whole path at a time."""

    def __init__(self, model: object, dtype: torch.dtype = torch.float32) -> None:
        if not isinstance(model, torch.nn.Module):  # it is a folder
            model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self.model = model.eval()
        self.cache: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def logprobs(self, token_ids: list[int]) -> torch.Tensor:
        """[T, V] float64 logprobs of what follows each token."""
        key = tuple(token_ids)
        if key not in self.cache:
            logits = self.model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
            self.cache[key] = logits.double().log_softmax(-1)
        return self.cache[key]

    def check(self, result: SearchResult, atol: float) -> int:
        """Every logprob and confidence of tree.json against a forward over its path.

        Returns:
            How many scored tokens were compared.
        """
        tree = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        nodes, prompt = tree["nodes"], tree["prompt_token_ids"]
        paths: dict[int, list[int]] = {}
        for node in nodes:
            before = paths[node["parent"]] if node["parent"] >= 0 else []
            paths[node["id"]] = before + node["token_ids"]
        inner = {node["parent"] for node in nodes}
        compared = set()
        for leaf in (node for node in nodes if node["id"] not in inner):
            sequence = prompt + paths[leaf["id"]]
            if len(sequence) == len(prompt):
                continue
            logprobs = self.logprobs(sequence)
            node = leaf
            while node["parent"] >= 0:
                if node["id"] not in compared:
                    begin = len(prompt) + len(paths[node["id"]]) - len(node["token_ids"])
                    self._check_node(node, logprobs[begin - 1 :], result.config.top_k, atol)
                    compared.add(node["id"])
                node = nodes[node["parent"]]
        assert len(compared) == len(nodes) - 1
        self._check_means(nodes)
        return sum(c is not None for node in nodes for c in node["confidences"])

    @staticmethod
    def _check_node(node: dict, logprobs: torch.Tensor, top_k: int, atol: float) -> None:
        for place, token in enumerate(node["token_ids"]):
            row = logprobs[place]
            logprob, confidence = node["logprobs"][place], node["confidences"][place]
            if logprob is None:
                assert confidence is None
                continue
            want = row[token].item()
            assert abs(logprob - want) <= atol, f"node {node['id']}: {logprob} is not {want}"
            top = row.topk(top_k).values.exp().sum().item()
            want = row[token].exp().item() / top
            assert abs(confidence - want) <= atol, f"node {node['id']}: {confidence} is not {want}"

    @staticmethod
    def _check_means(nodes: list[dict]) -> None:
        for node in nodes:
            path, each = [], node
            while True:
                path += [c for c in each["confidences"] if c is not None]
                if each["parent"] < 0:
                    break
                each = nodes[each["parent"]]
            want = sum(path) / len(path) if path else 0.0
            assert abs(node["path_confidence"] - want) < 1e-9
