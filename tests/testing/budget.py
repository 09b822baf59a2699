"""How many examples a test of a table takes, of those that the profile allows."""

from hypothesis import settings

SHARES = {"numpy": 5, "read-only numpy": 5}
OTHER_SHARE = 8
SMALL = 100
"""Profiles of more examples than this ask for thoroughness, and get all of them."""


def examples(backend: str) -> settings:
    """A fifth of a small profile's examples; fewer where a backend repeats what another shows."""
    allowed = settings.default.max_examples
    if allowed > SMALL:
        return settings(max_examples=allowed)
    return settings(max_examples=max(3, allowed // SHARES.get(backend, OTHER_SHARE)))


def laws_in(module):
    """The laws that a module of `lotr_tn.testing.laws` defines."""
    defined = {name for name, x in vars(module).items() if _home(x) == module.__name__}
    return {name for name in defined if not name.startswith("_")}


def _home(x):
    return getattr(x, "__module__", None)
