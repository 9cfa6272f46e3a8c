"""Trains a bundled nano model and writes its Hugging Face folder. From a checkout:

    python -m examples.train_nano.train nano-marco --tokens 40000000 --work .train/nano-marco
    python -m examples.train_nano.train nano-llama --tokens 6000000 --work .train/nano-llama

The training starts from random weights, or with --init from the folder of an earlier model: then
that model's tokenizer is extended, its weights are taken over, and layers that it lacks begin as
the identity. The exported weights are a moving average.

A killed training continues from its last checkpoint if the same command is given again: the data
depend only on the seed and the index of the batch, and the checkpoint holds weights, averages and
optimizer. The learning rate rises, stays, and falls linearly to zero over the last --decay of the
--tokens. The file of --mix is read again for every 1,024 samples, so that the weights of the levels
can be changed while the model learns.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from examples.train_nano.network import MODELS, Config, Network, frequencies
from examples.train_nano.optimizer import Optimizer
from examples.train_nano.samples import Sample, batches, padded, read_mix
from examples.train_nano.tokenizer import extend_tokenizer, save_tokenizer, train_tokenizer
from marco_fast.files import write_whole

AVERAGE = 0.99  # share of the moving average that a step keeps
DRAWN = 1024  # samples that are drawn together, sorted by length and cut into batches
ENGLISH_TOKENS = 1024  # tokens trained on English text; the rest are for Chinese


def learning_rate(done: int, total: int, peak: float, decay: float, warmup: int = 300_000) -> float:
    """The learning rate after `done` of `total` tokens; `warmup` is in tokens too."""
    fall = (total - done) / (total * decay)
    return peak * max(0.0, min(1.0, (done + 1) / warmup, fall))


@dataclass
class Training:
    """The state of a training, as a checkpoint holds it.

    `counts` are the tokens seen, the index of the current draw of samples, and the index of the
    next batch in it.
    """

    network: Network
    average: dict[str, Tensor]
    optimizer: Optimizer
    counts: dict[str, int] = field(default_factory=lambda: {"tokens": 0, "draw": 0, "batch": 0})
    seconds: float = 0.0


def start(
    config: Config,
    checkpoint: Path,
    seed: int,
    pool: Executor,
    *,
    init: Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Training:
    """The training in the checkpoint if there is one; else a new one.

    A new training takes its weights from the folder `init`, or begins with random ones.
    """
    torch.manual_seed(seed)
    network = Network(config, frequencies(config), dtype)
    if init is not None:
        _take_over(network, load_file(init / "model.safetensors"))
    average = {name: w.detach().clone() for name, w in network.named_parameters()}
    training = Training(network, average, Optimizer(network, pool))
    if checkpoint.exists():
        _load(training, checkpoint)
    return training


@torch.no_grad()
def _take_over(network: Network, weights: dict[str, Tensor]) -> None:
    """Copies weights of a model with fewer tokens or layers; added layers begin as the identity."""
    for name, weight in network.named_parameters():
        if name in weights:
            weight[: len(weights[name])] = weights[name]
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()


def _load(training: Training, checkpoint: Path) -> None:
    tensors = load_file(checkpoint)
    with safe_open(checkpoint, "pt") as file:
        counts = json.loads(file.metadata()["counts"])
    training.seconds = counts.pop("seconds")
    training.counts = counts
    training.optimizer.load(tensors)
    with torch.no_grad():
        for name, weight in training.network.named_parameters():
            weight.copy_(tensors[f"weight.{name}"])
            training.average[name].copy_(tensors[f"average.{name}"])


def save(training: Training, checkpoint: Path) -> None:
    """Writes the checkpoint whole or not at all."""
    tensors = training.optimizer.state()
    for name, weight in training.network.named_parameters():
        tensors[f"weight.{name}"] = weight.detach()
        tensors[f"average.{name}"] = training.average[name]
    counts = json.dumps({**training.counts, "seconds": training.seconds})
    _save_tensors(tensors, checkpoint, {"counts": counts})


def _save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata)
    part.chmod(0o644)
    part.replace(path)


def export(training: Training, config: Config, folder: Path) -> None:
    """Writes the averaged weights as a Hugging Face folder, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.bfloat16() for name, tensor in training.average.items()}
    _save_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    write_whole(folder / "config.json", config.to_json_string())
    generation = {
        "do_sample": False, "eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 768,
    }  # fmt: skip
    write_whole(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")


def part_gradients(
    network: Network, part: Sequence[Sample]
) -> tuple[float, int, tuple[Tensor, ...]]:
    """(sum of the loss, tokens in that sum, gradients in the order of the parameters)."""
    ids, flags = padded(part)
    scored = flags[:, 1:]
    hidden = network(ids)[:, :-1][scored]
    loss = functional.cross_entropy(network.logits(hidden), ids[:, 1:][scored], reduction="sum")
    return loss.item(), len(hidden), torch.autograd.grad(loss, tuple(network.parameters()))


def train_step(
    training: Training, batch: Sequence[Sequence[Sample]], rate: float, pool: Executor
) -> float:
    """Takes one step on a batch, with one task of the pool per part; returns the mean loss.

    On cores that other work uses too, threads that each take the next part are faster than threads
    that share every operation. Gradients are summed in the order of the parts.
    """
    results = list(pool.map(lambda part: part_gradients(training.network, part), batch))
    counted = sum(count for _, count, _ in results)
    total = list(results[0][2])
    for _, _, gradients in results[1:]:
        torch._foreach_add_(total, gradients)
    norm = float(torch.stack(torch._foreach_norm(total)).norm()) / counted
    torch._foreach_div_(total, counted * max(1.0, norm))
    names, weights = zip(*training.network.named_parameters(), strict=True)
    training.optimizer.step(dict(zip(names, total, strict=True)), rate)
    # In the first steps a shorter average forgets the random start.
    keep = min(AVERAGE, training.counts["tokens"] / (training.counts["tokens"] + 300_000))
    torch._foreach_lerp_(
        [training.average[n] for n in names], [w.detach() for w in weights], 1 - keep
    )
    training.counts["tokens"] += sum(len(ids) for part in batch for ids, _ in part)
    return sum(loss for loss, _, _ in results) / counted


def train(
    training: Training,
    config: Config,
    tokenizer: Tokenizer,
    args: argparse.Namespace,
    pool: Executor,
) -> None:
    """Trains until args.tokens are seen; saves a checkpoint every two minutes, and exports."""
    checkpoint = args.work / "checkpoint.safetensors"
    saved = exported = clock = time.monotonic()
    losses: list[float] = []
    while training.counts["tokens"] < args.tokens:
        drawn = _draw(training, config, tokenizer, args)
        for batch in drawn[training.counts["batch"] :]:
            rate = learning_rate(training.counts["tokens"], args.tokens, args.rate, args.decay)
            losses.append(train_step(training, batch, rate, pool))
            training.counts["batch"] += 1
            now = time.monotonic()
            training.seconds, clock = training.seconds + now - clock, now
            if now - saved > 120:
                saved = now
                save(training, checkpoint)
                figures = f"loss {sum(losses) / len(losses):.4f}, rate {rate:.2e}"
                print(f"{training.counts} {training.seconds:.0f} s, {figures}", flush=True)
                losses.clear()
            if now - exported > args.export_minutes * 60:
                exported = now
                export(training, config, args.folder)
            if training.counts["tokens"] >= args.tokens:
                break
        else:
            training.counts["draw"] += 1
            training.counts["batch"] = 0
    save(training, checkpoint)
    export(training, config, args.folder)


def _draw(
    training: Training, config: Config, tokenizer: Tokenizer, args: argparse.Namespace
) -> list[list[list[Sample]]]:
    """The batches of the current draw of samples."""
    mix = replace(read_mix(args.mix), concise=args.model == "nano-llama")
    return batches(
        tokenizer, mix, f"{args.seed} {training.counts['draw']}", tokens=args.batch,
        parts=args.parts, context=config.max_position_embeddings, count=DRAWN,
    )  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.train_nano.train")
    parser.add_argument(
        "model", choices=MODELS, help="nano-marco writes a thought, nano-llama answers at once"
    )
    parser.add_argument(
        "--folder", type=Path, help="folder of the exported model (default .train/MODEL/model)"
    )
    parser.add_argument("--work", type=Path, help="folder of the checkpoint (default .train/MODEL)")
    parser.add_argument("--init", type=Path, help="folder of an earlier model to start from")
    parser.add_argument("--tokens", type=int, default=14_000_000, help="tokens to train on")
    parser.add_argument("--batch", type=int, default=4096, help="tokens per step")
    parser.add_argument(
        "--parts", type=int, default=4, help="parts of a step that the threads share out"
    )
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument(
        "--decay", type=float, default=0.35, help="share of the tokens over which it falls"
    )
    parser.add_argument("--mix", help="JSON file with the fields of samples.Mix")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of matrix products; bfloat16 is faster only if the CPU has instructions for it",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2, help="threads of the pool")
    parser.add_argument("--seed", type=int, default=0, help="of weights and samples")
    parser.add_argument("--export-minutes", type=float, default=10, help="between two exports")
    parser.add_argument("--export-only", action="store_true", help="export the checkpoint and stop")
    args = parser.parse_args(argv)
    args.work = args.work or Path(".train") / args.model
    args.folder = args.folder or args.work / "model"
    return args


def new_tokenizer(size: int, args: argparse.Namespace) -> Tokenizer:
    """A newly trained tokenizer, or the tokenizer of --init, extended."""
    if args.init is None:
        return train_tokenizer(ENGLISH_TOKENS, size, seed=args.seed)
    earlier = Tokenizer.from_file(str(args.init / "tokenizer.json"))
    return extend_tokenizer(earlier, size, seed=args.seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Trains as the command line says."""
    args = parse(argv)
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(args.threads, initializer=lambda: torch.set_num_threads(1))
    args.work.mkdir(parents=True, exist_ok=True)
    config = MODELS[args.model]()
    tokenizer_file = args.work / "tokenizer.json"
    if not tokenizer_file.exists():
        write_whole(tokenizer_file, new_tokenizer(config.vocab_size, args).to_str())
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    args.folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, args.folder, config.max_position_embeddings)
    checkpoint, dtype = args.work / "checkpoint.safetensors", getattr(torch, args.dtype)
    training = start(config, checkpoint, args.seed, pool, init=args.init, dtype=dtype)
    if args.export_only:
        export(training, config, args.folder)
    else:
        train(training, config, tokenizer, args, pool)


if __name__ == "__main__":
    main()
