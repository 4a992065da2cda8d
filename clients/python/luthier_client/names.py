"""Resource names from what people write: `beer`, `beer@production`, `beer/3`, or the whole name."""

from __future__ import annotations

PRODUCTION = "production"
"""The alias that a model's bare name stands for."""


def resource(collection: str, name: str) -> str:
    """`{collection}/{name}`, or the name as it is where it has its collection already."""
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"


def dataset(name: str) -> str:
    """The resource that `banking` or `banking/2` stands for."""
    return _versioned("datasets", name)


def base(name: str) -> str:
    """The resource that `minilm-l6` (a base), or `beer/3` or `beer@production` (a model) stands for."""
    is_model = "@" in name or ("/" in name and not name.startswith("bases/"))
    return model(name) if is_model else resource("bases", name)


def model(name: str) -> str:
    """The resource that `beer`, `beer@production` or `beer/3` stands for."""
    id, at, alias = name.partition("@")
    return f"{resource('models', id)}/aliases/{alias}" if at else _versioned("models", name)


def parent(name: str) -> str:
    """`models/beer` of a model, one of its versions or of its aliases, in whatever form."""
    return "/".join(model(name).split("/")[:2])


def version(model_name: str, number: int | str) -> str:
    """`models/{model}/versions/{number}`."""
    return f"{parent(model_name)}/versions/{number}"


def alias(model_name: str, alias: str) -> str:
    """`models/{model}/aliases/{alias}`."""
    return f"{parent(model_name)}/aliases/{alias}"


def _versioned(collection: str, name: str) -> str:
    if name.startswith(f"{collection}/"):
        return name
    id, slash, number = name.partition("/")
    return f"{collection}/{id}/versions/{number}" if slash else f"{collection}/{id}"
