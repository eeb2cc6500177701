"""What the tasks share that give an utterance one label, or one per field."""
