"""The weights that a callback acts on, under the names the user wrote.

Wrappers do not change these names: `torch.compile`, activation checkpointing and FSDP insert path segments,
parametrizations and pruning rename the tensor.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm
from typing_extensions import override

from lightning_reg.selection.choice import Choice, Named, Words, choose
from lightning_reg.selection.layers import blocks, is_stack, is_torchs, output_dim
from lightning_reg.selection.select import Select

_WORDS = Words("weight", named="parameter", things="parameters", has="has")
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_PARAMETRIZED = re.compile(r"(?:^|(?<=\.))parametrizations\.(\w+)\.(original\d*)$")


@dataclass(frozen=True, eq=False)
class Weight(Named):
    """One parameter with all its names, and the modules in which it sits directly: several if it is tied."""

    parameter: nn.Parameter
    shape: torch.Size
    plain_name: str
    """Name of the tensor that its module uses; both parts of a weight under `weight_norm` have the same."""
    leaves: list[str] = field(default_factory=list)
    """Its name in each of its modules."""

    of_type = "in a"

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """Its dimensions; in the weight of a layer, the dimension of the output units comes first."""
        first = self._output_dim or 0
        return tuple(sorted(range(len(self.shape)), key=lambda dim: dim != first))

    @property
    def outside(self) -> str:
        """Why it is not the matrix or kernel of a layer despite two or more dimensions; "" if it is, or has fewer."""
        if len(self.shape) < Select.min_ndim or self._output_dim is not None:
            return ""
        module = self.modules[0]
        return f"not a matrix of its {type(module).__name__}" if is_torchs(module) else "in no layer"

    @property
    def is_direction(self) -> bool:
        """Whether it is the part of a weight under weight norm of which only the direction matters."""
        module, leaf, part = self.modules[0], self.leaves[0], self.name
        if weight_norm_of(module, leaf) is not None:
            return part.endswith("_v")
        lists = getattr(module, "parametrizations", {})
        is_normed = leaf in lists and isinstance(lists[leaf][0], parametrizations._WeightNorm)  # noqa: SLF001
        return is_normed and part.endswith("original1")

    @cached_property
    def is_stack(self) -> bool:
        """Whether it is a stack of matrices, experts x out x in."""
        return all(is_stack(module, leaf, self.shape) for module, leaf in zip(self.modules, self.leaves, strict=True))

    @property
    def mask(self) -> Tensor | None:
        """The mask by which pruning multiplies it; None if it is not pruned."""
        mask = getattr(self.modules[0], f"{self._leaf}_mask", None)
        return mask if isinstance(mask, Tensor) else None

    @property
    def is_computed_from(self) -> bool:
        """Whether a parametrization computes the weight of the layer from it; pruning does not count as one."""
        direct = any(self.parameter is own for module in self.modules for own in module.parameters(recurse=False))
        whole = self._leaf.removesuffix("_g").removesuffix("_v")  # torch's old weight norm has these beside `weight`
        if whole != self._leaf and any(isinstance(getattr(module, whole, None), Tensor) for module in self.modules):
            return True
        return not direct or not any(
            getattr(module, self._leaf, None) is self.parameter
            or isinstance(getattr(module, f"{self._leaf}_mask", None), Tensor)
            for module in self.modules
        )

    @cached_property
    def blocks(self) -> int:
        """Into how many parts with output units of their own it falls along dimension 0."""
        return blocks(self.modules[0])

    def by_units(self, tensor: Tensor) -> list[Tensor]:
        """Return views of a tensor of this shape, with the output units of the layer along dimension 0.

        One view for each of the `blocks`.
        """
        if self.blocks > 1:
            return [block.transpose(0, 1) for block in tensor.chunk(self.blocks)]
        return [tensor if self.dims[0] == 0 else tensor.permute(self.dims)]

    @property
    def _leaf(self) -> str:
        return self.plain_name.rpartition(".")[2]

    @property
    def _output_dim(self) -> int | None:
        found = (output_dim(module, leaf, self.shape) for module, leaf in zip(self.modules, self.leaves, strict=True))
        return next((dim for dim in found if dim is not None), None)

    @override
    def misfit(self, select: Select) -> str:
        if not (self.parameter.is_floating_point() or self.parameter.is_complex()):
            return f"{self.parameter.dtype} is not a floating-point type"
        ndim = len(self.shape)
        return super().misfit(select) or (f"{ndim} < {select.min_ndim} dimensions" if ndim < select.min_ndim else "")

    @override
    def remedy(self, select: Select, candidates: Iterable[Named]) -> str:
        ndim = len(self.shape)
        if self.misfit(replace(select, min_ndim=ndim)):
            return ""
        remedy = f" `Select({'' if select == Select() else '..., '}min_ndim={ndim})` takes them."
        if not all(candidate.misfit(Select(min_ndim=select.min_ndim)) for candidate in candidates):
            return remedy
        # As in e3nn, which keeps every weight flat.
        few = f" No weight of this model has {select.min_ndim} or more dimensions"
        return f"{few}, so these may be the real weights, not biases.{remedy}"


@dataclass(frozen=True)
class Selection(Choice[Weight]):
    """Outcome of a selection among `weights`: the chosen ones, and the reason for each one left out."""

    weights: tuple[Weight, ...]

    @property
    def names(self) -> dict[Tensor, str]:
        """The name of each chosen weight, by parameter."""
        return {weight.parameter: weight.name for weight in self.chosen}


def named_weights(module: nn.Module, shapes: Mapping[nn.Parameter, torch.Size] | None = None) -> list[Weight]:
    """Return every parameter of `module` once, with its clean names.

    Args:
        module: The module whose names count.
        shapes: Shapes of parameters that do not show theirs (flat shards).

    Raises:
        ValueError: If a lazy module has not seen its first batch: its weights have no shape yet.

    """
    weights: dict[nn.Parameter, Weight] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for leaf, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            if nn.parameter.is_lazy(parameter):
                msg = (
                    f"The weights of {type(owner).__name__} at {path!r} have no shape yet."
                    " Run one batch through the model before `Trainer.fit`."
                )
                raise ValueError(msg)
            shape = (shapes or {}).get(parameter, parameter.shape)
            names = _clean_names(path, leaf, owner)
            weight = weights.setdefault(parameter, Weight(parameter, shape, names[-1]))
            weight.modules.append(_user_module(module, path))
            weight.leaves.append(names[-1].rpartition(".")[2])
            weight.names.extend(names)
    return list(weights.values())


def clean_name(path: str) -> str:
    """Return the path of a module or parameter as the user wrote it, without the segments that wrappers insert."""
    return _WRAPPERS.sub("", f"{path}.").removesuffix(".")


def _clean_names(path: str, leaf: str, owner: nn.Module) -> list[str]:
    """Return the name the user wrote; if one weight became several tensors, a more precise name comes first."""
    # Pruning and the old spectral norm keep the trained tensor as `weight_orig` beside a computed `weight`.
    plain = leaf.removesuffix("_orig")
    if plain != leaf and hasattr(owner, plain) and not isinstance(getattr(owner, plain), nn.Parameter):
        leaf = plain
    name = clean_name(f"{path}.{leaf}" if path else leaf)
    # torch's old weight norm stores a weight as two parameters of the module itself.
    if weight_norm_of(owner, leaf[:-2]) is not None and leaf.endswith(("_g", "_v")):
        return [name, name[:-2]]
    plain_name = _PARAMETRIZED.sub(r"\1", name)
    if plain_name == name or name.endswith(".original"):
        return [plain_name]
    return [_PARAMETRIZED.sub(r"\1.\2", name), plain_name]


def weight_norm_of(module: nn.Module, leaf: str) -> WeightNorm | None:
    """Return the hook with which torch's old weight norm computes a tensor before each forward pass."""
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WeightNorm))  # noqa: SLF001
    return next((hook for hook in hooks if hook.name == leaf), None)


def _user_module(module: nn.Module, path: str) -> nn.Module:
    """Return the module at `path`, or the parametrized module if `path` is the list of its parametrizations."""
    head, found, _ = f".{path}".rpartition(".parametrizations.")
    return module.get_submodule(head.removeprefix(".") if found else path)


def select_weights(weights: Iterable[Weight], select: Select) -> Selection:
    """Apply `select`.

    Args:
        weights: All weights, see `named_weights`.
        select: The choice.

    Returns:
        The weights chosen, trainable or not, and the reason for each name left out.

    Raises:
        ValueError: If nothing is chosen, or a pattern or module type matches nothing.

    """
    weights = tuple(weights)
    choice = choose(weights, select, _WORDS)
    return Selection(choice.chosen, choice.left_out, weights)
