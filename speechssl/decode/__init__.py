"""From frame-wise scores to transcripts."""
