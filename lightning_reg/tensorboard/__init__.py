"""What the callbacks write to TensorBoard, and under which tags."""

from lightning_reg.tensorboard.layout import layout

__all__ = ["layout"]
