"""What the callbacks write to TensorBoard, and under which tags."""
