"""Training in float and in two quantized stages; experiments whose artifacts are made once."""
