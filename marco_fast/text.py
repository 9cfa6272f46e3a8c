"""What every text from outside must be."""

__all__ = ["check_unicode"]


def check_unicode(*texts: str) -> None:
    """Refuses half of a surrogate pair, which Python's texts can hold and no encoding can.

    Bytes that are not UTF-8 become such halves in the arguments of a program.

    Raises:
        ValueError: one of the texts is not Unicode.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError("expected Unicode text, got half of a surrogate pair") from error
