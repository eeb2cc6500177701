"""Slot filling: words and the slots that they fill, spelled by CTC."""
