"""The demo corpus: real speech that is published inside Debian and Python packages, or synthetic speech."""
