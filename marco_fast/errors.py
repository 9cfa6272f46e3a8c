"""The exceptions of marco_fast; argument mistakes are ValueError and IndexError."""

__all__ = ["BackendError", "KVCacheFull", "MarcoFastError", "ModelError"]


class MarcoFastError(Exception):
    """Base of every error that is not an argument mistake."""


class BackendError(MarcoFastError):
    """A backend that was named cannot run this call here; the message says why."""


class ModelError(MarcoFastError):
    """A model folder cannot be loaded or cannot be run faithfully; the message says why."""


class KVCacheFull(MarcoFastError):
    """The KV cache has too few free pages; nothing was changed.

    Attributes:
        needed: pages the call asked for.
        free: pages that were free.
        total: pages of the cache.
    """

    def __init__(self, needed: int, free: int, total: int) -> None:
        fewer = " or decode fewer branches" if needed <= total else ""
        super().__init__(
            f"expected at least {needed} free KV pages, got {free} free of {total}; "
            f"give the engine a larger kv_tokens{fewer}"
        )
        self.needed, self.free, self.total = needed, free, total
