"""Parts of the heads of downstream tasks."""
