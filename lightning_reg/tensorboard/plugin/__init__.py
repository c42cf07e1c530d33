"""The page "Regularization" of TensorBoard: layers against time.

TensorBoard finds it through the entry point of this package. It reads the logs of the callbacks. Nothing here imports
torch or Lightning, because TensorBoard would wait for them at each start.
"""
