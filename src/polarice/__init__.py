"""Polarice: single-particle cryo-EM in polar harmonics, from movies to class averages and maps.

    import polarice
    data = polarice.particles("particles.star")
    run = polarice.class2d(data, k=20, diameter_A=180)

Nothing is loaded before it is used; `polarice.api` says what there is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from polarice.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    api = import_module("polarice.api")
    if name == "api":
        return api
    if name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"polarice has no {name}; it has {', '.join(api.__all__)}")


def __dir__() -> list[str]:
    api = import_module("polarice.api")
    return ["__version__", *api.__all__]
