"""One layer as the map that the package makes of it, without a batch."""

from lightning_reg.functional.spectral.layers import Layer, convolution_map, matrix_maps


def layer_map(module, weight, size=None):
    """Return the map, its adjoint, and the shape of its argument."""
    layer = Layer("layer", weight, module)
    convolution = layer.convolution()
    maps = matrix_maps(["layer"], layer.matrix()[None]) if size is None else convolution_map(layer, convolution, size)
    return lambda x: maps.apply(x[None])[0], lambda x: maps.adjoint(x[None])[0], maps.shape[1:]


def layer_bound(module, weight, size=None):
    return Layer("layer", weight, module).norm_bound(size)


def kernel_matrix(module, weight):
    return Layer("layer", weight, module).matrix()
