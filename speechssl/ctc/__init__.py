"""What the tasks share that spell an utterance by connectionist temporal classification."""
