"""Voice conversion by nearest neighbours: say what the source says in the target's voice."""
