"""What a generator's fingerprint stands for, noted when it is made: a pipeline in which it has changed is refused."""

from typing import TYPE_CHECKING

from .parts import check_parts, parts_of
from .trial import check_scheduler, scheduler_state
from .weights import check_dropout, check_weights, weights_of

if TYPE_CHECKING:
    from diffusers import StableUnCLIPImg2ImgPipeline as Pipeline

__all__ = ["Steady"]


class Steady:
    """Remembers a pipeline's parts, what is set in them, and their weights.

    Its scheduler may be replaced, since a fingerprint names it, but only by one that can be relied on.

    Raises:
        ValueError: As all of its methods, if the pipeline can't be used, or can't any more.
    """

    def __init__(self, pipe: "Pipeline") -> None:
        self._parts, self._weights, self._tried = parts_of(pipe), weights_of(pipe), ""
        self.check(pipe)

    def check(self, pipe: "Pipeline") -> None:
        """All but the weights: cheap enough for every batch."""
        check_parts(pipe, self._parts)
        check_dropout(pipe)
        state = scheduler_state(pipe)
        if state != self._tried:
            check_scheduler(pipe)
            self._tried = state

    def check_weights(self, pipe: "Pipeline") -> None:
        """Reads all weights: for every run, not for every batch."""
        check_weights(pipe, self._weights)
