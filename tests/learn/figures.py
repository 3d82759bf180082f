"""Bounds for learned figures, which differ between processors, as these round differently: no bound may be close.

Each check prints figure and bound. `pytest -rP` shows the margins, and `make test-long` repeats them with other seeds.
"""


def at_least(name: str, figure: float | str, bound: float) -> None:
    """Check a lower bound."""
    print(f"margin: {name} is {float(figure):.4g}, at least {bound:.4g} is required")
    assert float(figure) >= bound, f"{name} is {figure}, expected at least {bound}"


def at_most(name: str, figure: float | str, bound: float) -> None:
    """Check an upper bound."""
    print(f"margin: {name} is {float(figure):.4g}, at most {bound:.4g} is allowed")
    assert float(figure) <= bound, f"{name} is {figure}, expected at most {bound}"
