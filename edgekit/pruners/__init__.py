"""Structured pruning on the exported graph. A file here ranks channels."""
