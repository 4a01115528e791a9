"""Captioners without torch: ONNX graphs, a script for them, and a page in the browser."""
