"""Any audio encoder of transformers with hidden states, as `transformers:REPOSITORY_OR_FOLDER`."""
