"""Intent classification: action, object and location of a spoken command."""
