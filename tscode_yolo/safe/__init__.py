"""Weights as plain data: one .safetensors file that holds tensors and JSON, so that loading it runs nobody's code."""
