"""How long calls of compiled programs are: about half a second, so that a request to stop is seen in time."""

SECONDS = 0.5  # of a chunk


class ChunkLength:
    """The length of chunks: doubled while they are fast, halved when they are slow.

    A chunk is one call of a program, of some steps or updates.

    Attributes:
        steps: how many the next chunk may have.
    """

    def __init__(self, most: int) -> None:
        self.most = max(1, most)
        self.restart()

    def restart(self) -> None:
        """Begin with short chunks again, because the cost of a step changes."""
        self.steps = min(8, self.most)
        self.compiled = False

    def took(self, seconds: float, steps: int) -> None:
        """Adapt to a chunk of so many. The first one is not counted, since it may compile."""
        if not self.compiled:
            self.compiled = True
        elif seconds > SECONDS:
            self.steps = max(1, steps // 2)
        elif steps == self.steps and seconds < SECONDS / 2:
            self.steps = min(self.most, 2 * steps)
