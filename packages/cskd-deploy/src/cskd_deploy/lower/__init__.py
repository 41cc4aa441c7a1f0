"""FP16 and INT8."""
