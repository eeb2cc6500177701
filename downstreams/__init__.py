"""One folder per downstream task; found by `speechssl.registry`."""
