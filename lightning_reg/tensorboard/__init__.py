"""The data that callbacks write to TensorBoard, and their tags."""

from lightning_reg.tensorboard.custom_scalars import layout

__all__ = ["layout"]
