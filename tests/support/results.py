"""Result files of whole searches and of growing steps, as small as a report can read."""

__all__ = ["case", "full_search", "scaling", "search"]


def case(**changed) -> dict:
    ours = {"engine": "marco_fast", "top_k": True, "seconds": [1.0, 4.0, 2.0], "expansions": 32}
    ours |= {"expansions_per_second": 16.0, "tokens_per_second": 512.0}
    slow = {**ours, "engine": "slow", "expansions_per_second": 0.125}
    blind = {**ours, "engine": "blind", "top_k": False, "expansions_per_second": 20.0}
    gone = {"engine": "gone", "skipped": "not installed"}
    fixed = {"model": "m-1", "precision": "float32", "branches": 8, "floor_seconds": 1.5}
    return fixed | {"engines": [ours, slow, blind, gone]} | changed


def search() -> dict:
    second = case(branches=32)
    second["engines"][1] = {**second["engines"][1], "skipped": "no answer"}
    return {"cases": [case(), second]}


def full_search() -> dict:
    """Whole searches, the case of README.md's table among them."""
    shown = case(model="qwen2-80m", precision="bfloat16", branches=32)
    return {"cases": [*search()["cases"], shown]}


def scaling() -> dict:
    way = {"seconds": 0.02, "quartiles": [0.019, 0.02, 0.021], "kv_bytes": 10**6}
    way |= {"floor_seconds": 0.01}
    points = [{"x": x, "branches": x, "shared": way, "unshared": way} for x in (1, 16, 256)]
    sweep = {"axis": "branches", "caption": "one prompt", "points": points}
    sweeps = {"branches": sweep, "depth": sweep}
    models = [{"model": name, "precision": "float32", "sweeps": sweeps} for name in ("a", "b")]
    return {"models": models}
