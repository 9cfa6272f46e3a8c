"""Silence for programs that own their standard error."""

import logging

import transformers

__all__ = ["silence_libraries"]


def silence_libraries() -> None:
    """Turns off the progress bars and notices of transformers and of the hub for this process."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # A hub that cannot be reached is said once, in the error, not at each of five attempts.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
