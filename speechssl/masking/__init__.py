"""Which frames the encoder does not get to see."""
