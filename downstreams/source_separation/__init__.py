"""Source separation: each of several voices alone."""
