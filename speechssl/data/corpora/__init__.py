"""Published corpora, one module each: the module is the registration (see `base`)."""
