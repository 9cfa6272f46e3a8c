"""Silence for programs that own their standard error."""

import transformers

__all__ = ["silence_libraries"]


def silence_libraries() -> None:
    """Turns off transformers' own progress bars and notices for this process."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
