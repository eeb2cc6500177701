"""One folder per published family of upstream models; found by `speechssl.registry`."""
