"""Trains a bundled nano model: tokenizer, weights, Hugging Face folder.

    python -m examples.train_nano.train nano-marco --tokens 40000000 --work .train/nano-marco
    python -m examples.train_nano.train nano-llama --tokens 6000000 --work .train/nano-llama

From nothing, or with --init from an earlier model's folder: its tokenizer is extended, its weights
are taken over, and layers that it lacks begin as the identity.

Killed at any time, the same command goes on from the last checkpoint: the data are a function of
the seed and the number of the batch, and the checkpoint holds weights, averages and optimizer. The
learning rate rises, stays, and falls linearly to nothing over the last --decay of the --tokens. The
file of --mix is read again for every 1,024 samples, so that the levels can follow what the model
has learned. The exported weights are a moving average.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from examples.train_nano.network import Network
from examples.train_nano.optimizer import Optimizer
from examples.train_nano.samples import UNIFORM, Mix, batches
from examples.train_nano.tokenizer import extend_tokenizer, save_tokenizer, train_tokenizer
from marco_fast.files import write_whole

AVERAGE = 0.99  # of the exported weights, a step
CHUNK = 1024  # samples drawn and sorted by length at once


def nano_marco() -> Qwen2Config:
    """Qwen2: 7 query heads on 1 KV head of 32 dimensions, tied embeddings."""
    return Qwen2Config(
        **_COMMON,
        hidden_size=224,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=7,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        architectures=["Qwen2ForCausalLM"],
    )


def nano_llama() -> LlamaConfig:
    """Llama: groups of 3 on 2 KV heads of 32 dimensions, tied embeddings, RoPE scaled as llama3."""
    return LlamaConfig(
        **_COMMON,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        architectures=["LlamaForCausalLM"],
    )


_COMMON: dict = {
    "vocab_size": 1664,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}
ENGLISH_TOKENS = 1024  # of the vocabulary; the rest is for Chinese
Config = Qwen2Config | LlamaConfig
MODELS: dict[str, Callable[[], Config]] = {"nano-marco": nano_marco, "nano-llama": nano_llama}


def frequencies(config: Config) -> Tensor:
    """[head_dim / 2] float32: RoPE's angles a position, as transformers has them."""
    return LlamaRotaryEmbedding(config).inv_freq  # type: ignore[arg-type]


def learning_rate(done: int, total: int, peak: float, decay: float, warmup: int = 300_000) -> float:
    """The rate after `done` of `total` tokens."""
    fall = (total - done) / (total * decay)
    return peak * max(0.0, min(1.0, (done + 1) / warmup, fall))


@dataclass
class Run:
    """What a checkpoint holds."""

    network: Network
    average: dict[str, Tensor]
    optimizer: Optimizer
    counts: dict[str, int] = field(default_factory=lambda: {"tokens": 0, "chunk": 0, "batch": 0})
    seconds: float = 0.0


def start(
    config: Config,
    checkpoint: Path,
    seed: int,
    pool: Executor,
    *,
    init: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Run:
    """A new run, one from the weights in the folder `init`, or the one in the checkpoint."""
    torch.manual_seed(seed)
    network = Network(config, frequencies(config), dtype)
    if init is not None:
        _take_over(network, load_file(init / "model.safetensors"))
    average = {name: w.detach().clone() for name, w in network.named_parameters()}
    run = Run(network, average, Optimizer(network, pool))
    if checkpoint.exists():
        _load(run, checkpoint)
    return run


@torch.no_grad()
def _take_over(network: Network, weights: dict[str, Tensor]) -> None:
    """Weights of a model with fewer tokens or layers; what is new begins as nothing."""
    for name, weight in network.named_parameters():
        if name in weights:
            weight[: len(weights[name])] = weights[name]
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()


def _load(run: Run, checkpoint: Path) -> None:
    tensors = load_file(checkpoint)
    with safe_open(checkpoint, "pt") as file:
        counts = json.loads(file.metadata()["counts"])
    run.seconds = counts.pop("seconds")
    run.counts = counts
    run.optimizer.load(tensors)
    with torch.no_grad():
        for name, weight in run.network.named_parameters():
            weight.copy_(tensors[f"weight.{name}"])
            run.average[name].copy_(tensors[f"average.{name}"])


def save(run: Run, checkpoint: Path) -> None:
    """Writes the checkpoint whole or not at all."""
    tensors = run.optimizer.state()
    for name, weight in run.network.named_parameters():
        tensors[f"weight.{name}"] = weight.detach()
        tensors[f"average.{name}"] = run.average[name]
    counts = json.dumps({**run.counts, "seconds": run.seconds})
    _save_tensors(tensors, checkpoint, {"counts": counts})


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata)
    part.chmod(0o644)
    part.replace(path)


def export(run: Run, config: Config, folder: Path) -> None:
    """Writes the averaged weights as a Hugging Face folder, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.bfloat16() for name, tensor in run.average.items()}
    _save_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    write_whole(folder / "config.json", config.to_json_string())
    generation = {
        "do_sample": False, "eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 768,
    }  # fmt: skip
    write_whole(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")


def padded(batch: Sequence[tuple]) -> tuple[Tensor, Tensor]:
    """(ids [B, T] int64, loss flags [B, T] bool) of samples, filled up on the right with 0."""
    length = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    flags = torch.zeros(len(batch), length, dtype=torch.bool)
    for row, (one, counted) in enumerate(batch):
        ids[row, : len(one)] = torch.tensor(one)
        flags[row, : len(one)] = torch.tensor(counted)
    return ids, flags


def part_gradients(
    network: Network, part: Sequence[tuple]
) -> tuple[float, int, tuple[Tensor, ...]]:
    """(summed loss, tokens that it counts, gradients in the order of the parameters)."""
    ids, flags = padded(part)
    scored = flags[:, 1:]
    hidden = network(ids)[:, :-1][scored]
    loss = functional.cross_entropy(network.logits(hidden), ids[:, 1:][scored], reduction="sum")
    return loss.item(), len(hidden), torch.autograd.grad(loss, tuple(network.parameters()))


def train_step(run: Run, batch: Sequence[Sequence[tuple]], rate: float, pool: Executor) -> float:
    """One step on one batch, a part a task; returns its mean loss.

    Threads that take parts as they get free lose less than threads that share every operation when
    the cores are shared with other work. The parts are summed in their order.
    """
    results = list(pool.map(lambda part: part_gradients(run.network, part), batch))
    counted = sum(count for _, count, _ in results)
    total = list(results[0][2])
    for _, _, gradients in results[1:]:
        torch._foreach_add_(total, gradients)
    norm = float(torch.stack(torch._foreach_norm(total)).norm()) / counted
    torch._foreach_div_(total, counted * max(1.0, norm))
    names, weights = zip(*run.network.named_parameters(), strict=True)
    run.optimizer.step(dict(zip(names, total, strict=True)), rate)
    # the average of the first steps forgets the random start
    keep = min(AVERAGE, run.counts["tokens"] / (run.counts["tokens"] + 300_000))
    torch._foreach_lerp_([run.average[n] for n in names], [w.detach() for w in weights], 1 - keep)
    run.counts["tokens"] += sum(len(ids) for part in batch for ids, _ in part)
    return sum(loss for loss, _, _ in results) / counted


def read_mix(path: str | None) -> Mix:
    """A mix from a JSON file {"weights": {test: [eight numbers]}, and fields of Mix}."""
    if path is None:
        return UNIFORM
    data = json.loads(Path(path).read_text())
    data["weights"] = {test: tuple(row) for test, row in data["weights"].items()}
    return Mix(**data)


def train(
    run: Run, config: Config, tokenizer: Tokenizer, args: argparse.Namespace, pool: Executor
) -> None:
    """Steps until args.tokens are seen; a checkpoint every two minutes, an export every fifteen."""
    saved = exported = clock = time.monotonic()
    losses: list[float] = []
    while run.counts["tokens"] < args.tokens:
        seed = f"{args.seed} {run.counts['chunk']}"
        mix = replace(read_mix(args.mix), concise=args.model == "nano-llama")
        cut = batches(
            tokenizer, mix, seed, tokens=args.batch, parts=args.parts,
            context=config.max_position_embeddings, count=CHUNK,
        )  # fmt: skip
        for batch in cut[run.counts["batch"] :]:
            rate = learning_rate(run.counts["tokens"], args.tokens, args.rate, args.decay)
            losses.append(train_step(run, batch, rate, pool))
            run.counts["batch"] += 1
            now = time.monotonic()
            run.seconds, clock = run.seconds + now - clock, now
            if now - saved > 120:
                saved = now
                save(run, args.work / "checkpoint.safetensors")
                loss = sum(losses) / len(losses)
                print(
                    f"{run.counts} {run.seconds:.0f} s, loss {loss:.4f}, rate {rate:.2e}",
                    flush=True,
                )
                losses.clear()
            if now - exported > args.export_minutes * 60:
                exported = now
                export(run, config, args.folder)
            if run.counts["tokens"] >= args.tokens:
                break
        else:
            run.counts["chunk"] += 1
            run.counts["batch"] = 0
    save(run, args.work / "checkpoint.safetensors")
    export(run, config, args.folder)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.train_nano.train")
    parser.add_argument("model", choices=MODELS, help="nano-llama answers without a thought")
    parser.add_argument("--folder", type=Path, help="default: .train/MODEL/model")
    parser.add_argument("--work", type=Path, help="checkpoints; default: .train/MODEL")
    parser.add_argument("--init", type=Path, help="folder of an earlier model to go on from")
    parser.add_argument("--tokens", type=int, default=14_000_000, help="tokens to train on")
    parser.add_argument("--batch", type=int, default=4096, help="tokens of a step")
    parser.add_argument("--parts", type=int, default=4, help="parts of a step that threads take")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument(
        "--decay", type=float, default=0.35, help="share of tokens that it falls over"
    )
    parser.add_argument("--mix", help="JSON file: weights of the levels, share of reflection")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the products; bfloat16 is faster only where the CPU multiplies it",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--export-minutes", type=float, default=10)
    parser.add_argument("--export-only", action="store_true", help="export the checkpoint and stop")
    args = parser.parse_args(argv)
    args.work = args.work or Path(".train") / args.model
    args.folder = args.folder or args.work / "model"
    return args


def new_tokenizer(size: int, args: argparse.Namespace) -> Tokenizer:
    """Trained from nothing, or that of --init, extended."""
    if args.init is None:
        return train_tokenizer(ENGLISH_TOKENS, size, seed=args.seed)
    earlier = Tokenizer.from_file(str(args.init / "tokenizer.json"))
    return extend_tokenizer(earlier, size, seed=args.seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = parse(argv)
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(args.threads, initializer=lambda: torch.set_num_threads(1))
    args.work.mkdir(parents=True, exist_ok=True)
    config = MODELS[args.model]()
    vocabulary = args.work / "tokenizer.json"
    if not vocabulary.exists():
        write_whole(vocabulary, new_tokenizer(config.vocab_size, args).to_str())
    tokenizer = Tokenizer.from_file(str(vocabulary))
    args.folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, args.folder, config.max_position_embeddings)
    checkpoint, dtype = args.work / "checkpoint.safetensors", getattr(torch, args.dtype)
    run = start(config, checkpoint, args.seed, pool, init=args.init, dtype=dtype)
    if args.export_only:
        export(run, config, args.folder)
    else:
        train(run, config, tokenizer, args, pool)


if __name__ == "__main__":
    main()
