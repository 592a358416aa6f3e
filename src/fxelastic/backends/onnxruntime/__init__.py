"""onnxruntime on CPU: its fusion rules, and the export to it."""
