"""Spectral norms of many layers, followed over time. Each estimate continues from the last one."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_reg.functional.spectral.batches import SMALL_ENTRIES
from lightning_reg.functional.spectral.lanczos import singular_pairs, start_vectors
from lightning_reg.functional.spectral.layers import Layer, LinearMaps, convolution_map, image_size, matrix_maps

# Small matrices of one shape are iterated together in one copy of at most this many entries.
_STACK_ENTRIES = 1 << 21
# A cold start takes this many times the iterations of a warm one.
_COLD = 4


class NormEstimates:
    """Lower estimates of the spectral norms of layers, warm-started by the layers' names.

    Args:
        input_size: Pixels along each dimension of the images on which convolutions are estimated.

    """

    def __init__(self, input_size: int) -> None:
        self.input_size = input_size
        self.vectors: dict[str, Tensor] = {}
        """The last right singular vectors, by layer. The next call continues from them."""

    def advance(self, layers: Sequence[Layer], iterations: int) -> Tensor:
        """Run Lanczos iterations from the last state, and return an estimate for each layer, shape (layers,).

        Nothing waits for the device.
        """
        names: list[str] = []
        found: list[Tensor] = []
        for maps in self._maps(layers):
            known = [self.vectors.get(name) for name in maps.names]
            warm = [vector for vector in known if vector is not None and vector.shape == maps.shape[1:]]
            is_warm = len(warm) == len(known)
            starts = start_vectors(maps.shape, torch.stack(warm) if is_warm else None, maps.dtype, maps.device)
            count = iterations if is_warm else _COLD * iterations
            sigmas, _, vectors = singular_pairs(maps.apply, maps.adjoint, starts, count)
            self.vectors.update(zip(maps.names, vectors.unbind(), strict=True))
            names += maps.names
            found.append(sigmas)
        place = {name: index for index, name in enumerate(names)}
        order = torch.tensor([place[layer.name] for layer in layers])
        norms = torch.cat([sigmas.to(found[0].device) for sigmas in found])
        return norms[order.to(norms.device, non_blocking=True)]

    def _maps(self, layers: Sequence[Layer]) -> Iterator[LinearMaps]:
        alike: dict[tuple[torch.Size, torch.dtype, torch.device], list[tuple[str, Tensor]]] = defaultdict(list)
        for layer in layers:
            convolution = layer.convolution()
            if convolution is not None:
                yield convolution_map(layer, convolution, image_size(convolution, self.input_size))
                continue
            matrix = layer.matrix()
            if matrix.numel() > SMALL_ENTRIES:
                yield matrix_maps([layer.name], matrix[None])
            else:
                alike[matrix.shape, matrix.dtype, matrix.device].append((layer.name, matrix))
        for (shape, _, _), members in alike.items():
            count = min(len(members), max(1, _STACK_ENTRIES // max(1, shape.numel())))
            # All groups reuse one copy. Fresh memory would take longer than the computation.
            buffer = torch.empty(count, *shape, dtype=members[0][1].dtype, device=members[0][1].device)
            for start in range(0, len(members), count):
                names, matrices = zip(*members[start : start + count], strict=True)
                copy = buffer[: len(names)]
                torch.stack([matrix.detach() for matrix in matrices], out=copy)
                yield matrix_maps(list(names), copy)
