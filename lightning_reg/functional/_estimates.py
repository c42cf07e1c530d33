"""Spectral norms of many layers, followed over time: each estimate starts where the one before ended."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_reg.functional._lanczos import singular_pairs, start_vectors
from lightning_reg.functional._layers import Layer, LinearMaps, convolution_map, image_size, matrix_maps

# Smaller matrices of one shape are iterated together, in one copy: alone they would cost more calls than work.
_SMALL_ENTRIES = 1 << 16
_STACK_ENTRIES = 1 << 22
# A cold start takes this many times the iterations of a warm one.
_COLD = 4


class NormEstimates:
    """Lower estimates of the spectral norms of layers, warm-started by the layers' names.

    Args:
        input_size: Pixels along each dimension of the images on which convolutions are estimated.

    """

    def __init__(self, input_size: int) -> None:
        self.input_size = input_size
        self._vectors: dict[str, Tensor] = {}

    def advance(self, layers: Sequence[Layer], iterations: int) -> list[Tensor]:
        """Return an estimate for each layer, shape () each, after so many Lanczos iterations from the last state.

        Nothing waits for the device.
        """
        norms: dict[str, Tensor] = {}
        for maps in self._maps(layers):
            known = [self._vectors.get(name) for name in maps.names]
            warm = [vector for vector in known if vector is not None and vector.shape == maps.shape[1:]]
            is_warm = len(warm) == len(known)
            starts = start_vectors(maps.shape, torch.stack(warm) if is_warm else None, maps.dtype, maps.device)
            count = iterations if is_warm else _COLD * iterations
            sigmas, _, vectors = singular_pairs(maps.apply, maps.adjoint, starts, count)
            self._vectors.update(zip(maps.names, vectors, strict=True))
            norms.update(zip(maps.names, sigmas, strict=True))
        return [norms[layer.name] for layer in layers]

    def _maps(self, layers: Sequence[Layer]) -> Iterator[LinearMaps]:
        alike: dict[tuple[torch.Size, torch.dtype, torch.device], list[tuple[str, Tensor]]] = defaultdict(list)
        for layer in layers:
            convolution = layer.convolution()
            if convolution is not None:
                yield convolution_map(layer, convolution, image_size(convolution, self.input_size))
                continue
            matrix = layer.matrix()
            if matrix.numel() > _SMALL_ENTRIES:
                yield matrix_maps([layer.name], matrix[None])
            else:
                alike[matrix.shape, matrix.dtype, matrix.device].append((layer.name, matrix))
        for (shape, _, _), members in alike.items():
            count = max(1, _STACK_ENTRIES // max(1, shape.numel()))
            for start in range(0, len(members), count):
                names, matrices = zip(*members[start : start + count], strict=True)
                yield matrix_maps(list(names), torch.stack(matrices))
