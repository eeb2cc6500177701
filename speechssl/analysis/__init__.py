"""What a model's layers know: measures on features, a runner that makes them of a corpus, and a page about them."""
