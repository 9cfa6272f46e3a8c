"""Results of real models, as small as a report can read."""

__all__ = ["real", "real_row"]


def real_row(branches: int = 1, weights: str = "Q8_0", **speeds: float) -> dict:
    """A row of real.json.

    Args:
        branches, weights: of the row.
        speeds: tokens/s by role; a role without one did not run.
    """
    speeds = speeds or {"float32": 50.0, "int8": 80.0, "dense": 60.0, "peer": 100.0}
    names = {"dense": "bfloat16 weights", "peer": "llama.cpp"}
    engines = [
        {"role": names.get(role, role), "engine": "e", "tokens_per_second": speed}
        | {"expansions_per_second": speed / 32}
        for role, speed in speeds.items()
    ]
    engines.append({"role": "gone", "engine": "e", "skipped": "not installed"})
    fixed = {"model": "SmolLM2-135M-Instruct", "weights": weights, "isa": "native"}
    return fixed | {"branches": branches, "engines": engines}


def real() -> dict:
    """real.json of two kinds of weights and two numbers of branches, one of them not for both."""
    return {"rows": [real_row(16), real_row(1), real_row(1, "Q4_0")]}
