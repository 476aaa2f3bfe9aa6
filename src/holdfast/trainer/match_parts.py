"""Matches tensors that are stored as several: in place where their parts are, else made anew and copied over."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from holdfast.errors import CorruptError
from holdfast.trainer.forms import Form
from holdfast.trainer.parts import Parts, become, can_make, make
from holdfast.trainer.placing import Build, give

if TYPE_CHECKING:
    from holdfast.trainer.match import Matcher, Scope
    from holdfast.trainer.saved import SavedTensor


def match_parts(matcher: Matcher, name: str, live: torch.Tensor, parts: Parts, scope: Scope) -> bool:
    """Have `live` become what was saved under that name. False: it cannot, and why is noted."""
    form = matcher.saved.forms(scope.rank).get(name)
    found = form or matcher.use(name, scope)
    if found is None:
        matcher.differences.note("missing", name, str(parts.form))
        return False
    uses = dict(_uses(matcher, name, form, scope)) if form else {}
    if not same_parts(matcher, name, parts.form, found) or form is None:
        return False
    if not parts.form.in_place():
        build = _made(matcher, name, form, uses, scope, (live.device, live))
        matcher.first.append(lambda: give(name, become, live, build()))
        return True
    same = [matcher.same_form(f"{name}.{leaf}", tensor, uses[leaf]) for leaf, tensor in parts.tensors.items()]
    if all(same):
        matcher.copies += [(tensor, uses[leaf]) for leaf, tensor in parts.tensors.items()]
    return all(same)


def same_parts(matcher: Matcher, name: str, live: Form | str, found: SavedTensor | Form) -> bool:
    """Whether the one can become the other; else that is noted. A text is a tensor stored as it is."""
    if isinstance(live, Form) and isinstance(found, Form) and live.fits(found):
        return True
    matcher.differences.note("other", name, str(live), str(found))
    return False


def new_parts(matcher: Matcher, name: str, scope: Scope, device: torch.device, like: Any = None) -> Build:
    """A tensor made of its parts, for what has no live counterpart; of the type of `like` where there is one."""
    form = matcher.saved.forms(scope.rank)[name]
    uses = dict(_uses(matcher, name, form, scope))
    like = like if isinstance(like, torch.Tensor) else None
    if can_make(form, like):
        return _made(matcher, name, form, uses, scope, (device, like))
    kind = form.name.rpartition(".")[2]
    how = f"a {form}: holdfast.register({kind}, name={form.name!r}, ...) before load"
    matcher.differences.note("other", name, "nothing that says how to make one", how)
    return lambda: None


def _made(
    matcher: Matcher,
    name: str,
    form: Form,
    uses: dict[str, SavedTensor],
    scope: Scope,
    likeness: tuple[torch.device, torch.Tensor | None],
) -> Build:
    """Allocate the parts; the answer makes the tensor of them, once."""
    device, like = likeness
    tensors = {leaf: matcher.create(found, scope, device) for leaf, found in uses.items()}
    made: list[torch.Tensor] = []

    def build() -> torch.Tensor:
        if not made:
            made.append(give(name, partial(make, form, tensors, like)))
        return made[0]

    return build


def _uses(matcher: Matcher, name: str, form: Form, scope: Scope) -> Iterator[tuple[str, SavedTensor]]:
    """What was saved of each part. Raises: CorruptError: a part is not there."""
    for leaf in form.leaves():
        found = matcher.use(f"{name}.{leaf}", scope)
        if found is None:
            raise CorruptError(f"the part {leaf!r} of {name!r} is in no image")
        yield leaf, found
