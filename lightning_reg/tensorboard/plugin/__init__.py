"""The page "Regularization" of TensorBoard: layers against time.

TensorBoard finds it by the entry point that this package declares. It reads what the callbacks have logged, without
them: nothing here imports torch or Lightning, for TensorBoard would wait for them at each start.
"""
