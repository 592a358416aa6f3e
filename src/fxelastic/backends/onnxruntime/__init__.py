"""onnxruntime on CPU: fusion rules, and the kernels that a graph is optimised to."""
