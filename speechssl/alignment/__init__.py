"""Alignment: dynamic time warping of feature sequences, and the search of spoken queries in documents."""
