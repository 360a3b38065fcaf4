"""How many decimals a number is shown with. Imports nothing, so that every command may use it."""


def digits_of(x: float) -> int:
    """Return the number of decimals for a number of this size and for those beside it."""
    return 1 if abs(x) >= 10 else 2 if abs(x) >= 1 else 3


def format_return(x: float | None, like: float | None = None) -> str:
    """Format a return as 1,020.3, -2.50 or 0.123, in ASCII, and a missing one as -.

    With as many decimals as `like`, if given.
    """
    if x is None:
        return "-"
    return f"{x:,.{digits_of(x if like is None else like)}f}"
