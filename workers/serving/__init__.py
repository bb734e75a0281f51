"""Predictions from a bundle: rows in memory and a tower in ONNX Runtime, over gRPC and HTTP, without torch and Ray."""
