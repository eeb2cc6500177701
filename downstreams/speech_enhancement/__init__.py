"""Speech enhancement: speech without the noise around it."""
