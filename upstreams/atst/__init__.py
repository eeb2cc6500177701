"""ATST: transformers that agree with a slowly moving copy of themselves, on whole clips or frame by frame."""
