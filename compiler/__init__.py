"""The compiler: IR, tracing, passes, constraints, lowering. Knows no tensors and no engine."""
