"""The tags under which everything is logged. They are part of the public interface."""

PENALTY = "reg/penalty"
PENALTY_RATIO = "reg/penalty_ratio"
SETUP = "reg/setup"
TARGET_SPARSITY = "reg/target_sparsity"
