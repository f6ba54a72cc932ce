"""Extension of Envoy: a name, a type and its settings."""

from typing import Any

TYPE = "type.googleapis.com/"
FILTERS = f"{TYPE}envoy.extensions.filters"


def extension(name: str, type_url: str, **settings: Any) -> dict[str, Any]:
    """Return the configuration of an extension."""
    return {"name": name, "typed_config": {"@type": type_url, **settings}}
