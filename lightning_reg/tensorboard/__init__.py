"""What the callbacks write to TensorBoard, and under which tags."""

from lightning_reg.tensorboard.custom_scalars import layout

__all__ = ["layout"]
