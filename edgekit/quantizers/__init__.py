"""Quantizers. A file here is one: it edits an ONNX graph by the target's scheme."""
