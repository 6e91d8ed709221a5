"""How torch sees the operation: checks, derivatives, the operator, and the way from tensors to kernels."""
