"""The functions whose calls clip: torch's, and ours of the same names."""

from __future__ import annotations

from typing import Any, NamedTuple

from steadygrad.torch.clip_calls.clipcall import Call
from steadygrad.torch.dropins import clip_norm, clip_value
from steadygrad.torch.internals import sites
from steadygrad.torch.internals.inlay import Arguments
from steadygrad.torch.internals.sites import Site


class ClipFunction(NamedTuple):
    """One function that clips gradients in place.

    Attributes:
        site: where its calls are told.
        kind: ``norm``, ``given norm``, ``value`` or ``agc``.
        exact: it scales by ``min(1, max_norm / norm)``, and writes nothing where that is 1.
    """

    site: Site
    kind: str
    exact: bool = False

    @property
    def name(self) -> str:
        """What a script types."""
        return f"{'steadygrad.torch' if self.exact else 'torch.nn.utils'}.{self.site.name}"

    def call(self, arguments: Arguments, parameters: list[Any] | None = None) -> Call:
        """One call of it.

        Args:
            arguments: in the order of its signature.
            parameters: as `Call` has them.
        """
        return Call(self.kind, self.site.parameters, arguments, self.exact, parameters)


_OURS = [clip_norm]
CLIP_FUNCTIONS = tuple(
    each
    for each in (
        ClipFunction(sites.CLIP_NORM, "norm"),
        ClipFunction(sites.CLIP_WITH_NORM, "given norm"),  # not in torch before 2.6
        ClipFunction(sites.CLIP_VALUE, "value"),
        ClipFunction(Site("clip_grad_norm_", _OURS, guarded=False), "norm", True),
        ClipFunction(Site("clip_grads_with_norm_", _OURS, guarded=False), "given norm", True),
        ClipFunction(Site("clip_grad_value_", [clip_value], guarded=False), "value", True),
    )
    if each.site.exists
)
