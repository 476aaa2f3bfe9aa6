"""Matches an optimizer with its saved state: by the names of parameters, never by their numbers.

Missing state is allocated from what the images hold, without a step. After the load the optimizer has exactly the
state that was saved: an entry that the checkpoint does not have is gone.

Where differences are passed over, a parameter gets its whole state or none: entries of different ages (a step count
without its averages) would be worse than a fresh start. One that was not filled itself starts empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from holdfast.format.plain import TensorRef
from holdfast.trainer import dtensor, values
from holdfast.trainer.forms import Form
from holdfast.trainer.match_parts import new_parts
from holdfast.trainer.optimizers import GROUPS, NOT_SETTINGS, STATE, Named
from holdfast.trainer.placing import Build
from holdfast.trainer.saved import SavedTensor
from holdfast.trainer.twin import Entries, forecast

if TYPE_CHECKING:
    from holdfast.trainer.match import Matcher, Scope

_OF_THIS_PROCESS = NOT_SETTINGS | {"foreach", "fused", "capturable", "differentiable"}
"""Keys of a group that a load leaves alone: how this process computes is no state."""


def match_optimizer(matcher: Matcher, named: Named, saved: Any, scope: Scope) -> Build:
    """Match groups and state; `saved` is the optimizer's value in the tree."""
    groups = saved.get(GROUPS, []) if isinstance(saved, dict) else []
    work = _Work(matcher, named, groups, scope)
    settings = list(work.settings())
    plain = saved.get(STATE, {}) if isinstance(saved, dict) else {}
    entries = dict(work.state(plain))
    return partial(_install, named.optimizer, settings, entries)


@dataclass(frozen=True, slots=True)
class _State:
    """One parameter: what was saved of its state, tensors and others, and what the optimizer has or will make."""

    name: str
    parameter: torch.Tensor
    tensors: Mapping[str, SavedTensor | Form]
    rest: Mapping[str, Any]
    expected: Entries

    @property
    def keys(self) -> list[str]:
        return [*self.tensors, *self.rest]


class _Work:
    def __init__(self, matcher: Matcher, named: Named, groups: list[dict[str, Any]], scope: Scope) -> None:
        self.matcher, self.named, self.groups, self.scope = matcher, named, groups, scope
        self.notes = matcher.differences
        self.group_of = {name: g for g, group in enumerate(groups) for name in group.get("params", [])}
        live = dict.fromkeys(name for names in named.groups for name in names)
        at = f"{named.path}.{GROUPS}"
        new = [name for name in live if name not in self.group_of]
        gone = [name for name in self.group_of if name not in live]
        for name in new:
            self.notes.note("missing", f"{at}: {name}")
        for name in gone:
            self.notes.note("unexpected", f"{at}: {name}")
        self.changed = bool(new or gone)

    def settings(self) -> Iterator[tuple[dict[str, Any], dict[str, Build]]]:
        """For each live group, what its settings become."""
        for g, group in enumerate(self.named.optimizer.param_groups):
            found = self._saved_group(g)
            at = f"{self.named.path}.{GROUPS}.{g}"
            yield (
                group,
                {
                    key: self._setting(f"{at}.{key}", group.get(key), value)
                    for key, value in found.items()
                    if key not in _OF_THIS_PROCESS
                },
            )

    def _saved_group(self, g: int) -> dict[str, Any]:
        """The group the parameters of live group `g` were in: where they were in several, these must agree."""
        names = self.named.groups[g]
        if not names:
            return self.groups[g] if g < len(self.groups) else {}
        found = [self.groups[i] for i in dict.fromkeys(self.group_of[n] for n in names if n in self.group_of)]
        if len({values.encode({k: v for k, v in f.items() if k not in _OF_THIS_PROCESS}) for f in found}) > 1:
            self.notes.note("other", f"{self.named.path}.{GROUPS}.{g}", "one group", "groups with different settings")
            return {}
        return found[0] if found else {}

    def _setting(self, path: str, live: Any, value: Any) -> Build:
        if isinstance(live, torch.Tensor) and isinstance(value, TensorRef):
            return self.matcher.value(path, live, value, self.scope)
        return self.matcher.new(value, self.scope)

    # -- state --------------------------------------------------------------------------------------------------------
    def state(self, plain: Mapping[str, Any]) -> Iterator[tuple[torch.Tensor, dict[str, Build]]]:
        """For each parameter, its state entries; none where the checkpoint has none that fit."""
        tensors = self._saved_tensors()
        foretold = forecast(self.named.optimizer)
        for name, parameter, g in self.named.parameters():
            live: Entries = self.named.optimizer.state.get(parameter) or {}
            expected = live or (foretold or {}).get(parameter, {})
            one = _State(name, parameter, tensors.get(name, {}), plain.get(name, {}), expected)
            unfit = self._unfit(one, foretold=foretold is not None)
            if unfit:
                self._pass_over(one, unfit)
                yield parameter, {}
                continue
            builds: dict[str, Build] = {}
            for key in sorted(one.tensors, key=_order(expected)):
                builds[key] = self._entry(name, key, parameter, self.named.optimizer.param_groups[g], expected.get(key))
            builds |= {key: self.matcher.new(value, self.scope, parameter.device) for key, value in one.rest.items()}
            yield parameter, builds

    def _unfit(self, one: _State, *, foretold: bool) -> str:
        """Why a parameter cannot take its saved state, in words; empty when it can."""
        if one.name not in self.group_of:
            return "the parameter is new"
        if id(one.parameter) in self.matcher.unfit:
            return "the parameter is not loaded"
        # LBFGS keeps one state for all of its parameters, and others that cannot be foretold may do so too.
        if not foretold and (self.changed or any(id(p) in self.matcher.unfit for _, p, _ in self.named.parameters())):
            return "other parameters are not the same"
        forms = [
            self.matcher.same_form(self.named.state_name(one.name, key), entry, one.tensors[key])
            for key, entry in one.expected.items()
            if isinstance(entry, torch.Tensor) and key in one.tensors
        ]
        same_keys = not foretold or self._compare_keys(one)
        return "" if all(forms) and same_keys else "not all of it fits"

    def _pass_over(self, one: _State, why: str) -> None:
        for key, found in one.tensors.items():  # not told a second time, as only in the checkpoint
            fqn = self.named.state_name(one.name, key)
            for name in [f"{fqn}.{leaf}" for leaf in found.leaves()] if isinstance(found, Form) else [fqn]:
                self.matcher.use(name, self.scope)
        if one.keys:
            self.notes.note("state", f"{self.named.path}.{STATE}.{one.name}", why, ", ".join(map(str, one.keys)))

    def _saved_tensors(self) -> dict[str, dict[str, SavedTensor | Form]]:
        """The tensors among the saved entries, by parameter and key."""
        prefix = f"{self.named.path}.{STATE}."
        saved, rank = self.matcher.saved, self.scope.rank
        found: dict[str, dict[str, SavedTensor | Form]] = {}
        part, forms = saved.shared if rank is None else saved.own.get(rank, {}), saved.forms(rank)
        for fqn in (*part, *forms):
            if fqn.startswith(prefix):
                name, _, key = fqn[len(prefix) :].rpartition(".")
                tensor = forms.get(fqn) or saved.find(fqn, rank)
                if name in self.group_of and tensor is not None:
                    found.setdefault(name, {})[key] = tensor
        return found

    def _entry(self, name: str, key: str, parameter: torch.Tensor, group: dict[str, Any], expected: Any) -> Build:
        fqn = self.named.state_name(name, key)
        if isinstance(expected, torch.Tensor):
            live = self.named.optimizer.state.get(parameter, {}).get(key)
            if isinstance(live, torch.Tensor):
                self.matcher.tensor(fqn, live, self.scope)
                return lambda: live
        device = _device(key, parameter, group, expected)
        if fqn in self.matcher.saved.forms(self.scope.rank):
            return new_parts(self.matcher, fqn, self.scope, device, like=expected)
        found = self.matcher.use(fqn, self.scope)
        assert found is not None
        like = None if dtensor.is_dtensor(parameter) and dtensor.beside(key, found.shape, parameter) else parameter
        made = self.matcher.create(found, self.scope, device, like=like)
        return lambda: made

    def _compare_keys(self, one: _State) -> bool:
        """Whether the saved entries are those that this optimizer keeps; else that is noted."""
        if not one.keys or not one.expected:
            return True
        at = f"{self.named.path}.{STATE}.{one.name}"
        missing = [key for key in one.expected if key not in one.keys]
        unexpected = [key for key in one.keys if key not in one.expected]
        for key in missing:
            self.notes.note("missing", f"{at}.{key}")
        for key in unexpected:
            self.notes.note("unexpected", f"{at}.{key}")
        return not missing and not unexpected


def _order(expected: Entries) -> Any:
    """Entries in the order the optimizer makes them, so that the next save finds the structure unchanged."""
    places = {key: i for i, key in enumerate(expected)}
    return lambda key: places.get(key, len(places))


def _device(key: str, parameter: torch.Tensor, group: dict[str, Any], expected: Any) -> torch.device:
    if isinstance(expected, torch.Tensor):
        return parameter.device if expected.is_meta else expected.device
    if key == "step" and not group.get("capturable") and not group.get("fused"):
        return torch.device("cpu")  # torch's optimizers count there unless told otherwise
    return parameter.device


def _install(
    optimizer: Optimizer,
    settings: list[tuple[dict[str, Any], dict[str, Build]]],
    entries: dict[torch.Tensor, dict[str, Build]],
) -> Optimizer:
    for group, builds in settings:
        group.update({key: build() for key, build in builds.items()})
    for parameter, builds in entries.items():
        made = {key: build() for key, build in builds.items()}
        if made:
            optimizer.state[parameter] = made
        else:
            optimizer.state.pop(parameter, None)
    return optimizer
