"""The architecture that wav2vec 2.0 and its descendants share: shape, wiring, and the formats it comes in."""
