"""marco-fast info --model: how a model would run, before it is loaded."""

from typing import TYPE_CHECKING, Any

from marco_fast.search.replies import AUTO, reply_format

if TYPE_CHECKING:
    from marco_fast.engine.loading.outlook import Outlook

__all__ = ["as_json", "as_lines", "size"]

REPLY_TEXTS = {
    "auto": "what each reply shows: <think>, <Thought> and <Output>, or no tags",
    "think": "think: a thought up to </think>, then the answer",
    "plain": "plain: the whole reply is the answer",
    "marco": "marco: <Thought>, then <Output>",
}


def as_json(name: str, seen: "Outlook") -> dict[str, Any]:
    """Everything that is known, as JSON holds it."""
    fields = seen._asdict() | {"model": name, "needed": seen.needed, "reply": _reply(seen)}
    del fields["tokenizer"]
    return fields


def as_lines(name: str, seen: "Outlook") -> dict[str, str]:
    """The same in words, by what it is about."""
    stored = ", ".join(f"{count} x {kind}" for kind, count in seen.stored.items())
    model = f"{name} ({seen.kind}"
    model += f", {size(seen.file_bytes)}: {stored})" if seen.stored else ", not here yet)"
    where = "in C++" if seen.runner == "C++" else "through transformers"
    whole = seen.kv_tokens // seen.context
    holds = f"{whole:,} whole contexts" if whole > 1 else "one path as long as the context"
    quantised = f"int{seen.bits} " if seen.bits else ""
    rounded = " with activations in int8" if seen.activations else ""
    lines = {
        "model": model,
        "architecture": f"{seen.architecture} ({seen.model_class}), {seen.layers} layers, "
        f"{_count(seen.parameters)} parameters",
        "runs": f"{where} on {seen.device}, in {seen.dtype}{rounded}: {quantised}weights of "
        f"{size(seen.weights_bytes)}",
        "context": f"{seen.context:,} tokens{_limited(seen)}",
        "KV cache": f"{seen.kv_tokens:,} tokens of {seen.kv_token_bytes:,} bytes "
        f"({size(seen.kv_tokens * seen.kv_token_bytes)} when full), or {holds}",
        "memory": f"{size(seen.weights_bytes)} when loaded, {size(seen.needed)} with a full KV "
        f"cache, of {size(seen.memory)}{_too_much(seen)}",
        "chat template": _template(seen),
        "replies": REPLY_TEXTS[_reply(seen)],
    }
    return lines


def size(count: float) -> str:
    """Bytes in words."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= unit:
            return (
                f"{count / unit:.1f} {name}" if count < 10 * unit else f"{count / unit:.0f} {name}"
            )
    return f"{count:.0f} bytes"


def _count(number: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:,}"


def _limited(seen: "Outlook") -> str:
    if seen.context == seen.limit:
        return f" ({seen.limit_cause} of the model)"
    if seen.context >= seen.kv_tokens:
        return f", as many as the KV cache holds (the model takes {seen.limit:,})"
    return f" (the model takes {seen.limit:,})"


def _too_much(seen: "Outlook") -> str:
    if seen.weights_bytes < seen.memory:
        return ""
    return ": too much; a GGUF file, or --dtype bfloat16, int8 or int4, takes less"


def _template(seen: "Outlook") -> str:
    if seen.chat_template is None:
        return "none: the model gets a plain prompt"
    thinks = "enable_thinking" in str(seen.chat_template)
    switch = ", --chat-template-kwargs '{\"enable_thinking\": false}' switches its thought off"
    return "the model's own" + (switch if thinks else "")


def _reply(seen: "Outlook") -> str:
    """The reply format of a question without a system prompt."""
    if seen.chat_template is None:
        return AUTO.name
    try:
        prompt = seen.tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False
        )
    except Exception:  # a template that does not take this chat
        prompt = ""
    names = {each.content for each in seen.tokenizer.added_tokens_decoder.values() if each.special}
    end = max((prompt.rfind(each) + len(each) for each in names if each in prompt), default=0)
    return reply_format(AUTO.name, str(seen.chat_template), str(prompt[end:])).name
