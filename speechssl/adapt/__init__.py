"""Upstreams that learn with a task: fine-tuning, and a few parameters added to or chosen from a frozen model."""
