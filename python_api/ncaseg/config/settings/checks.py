"""How settings check themselves."""


def require(holds: bool, name: str, must: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name} must {must}; got {got!r}")


def require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    require(value in allowed, name, f"be one of {', '.join(allowed)}", value)
