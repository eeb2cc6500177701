"""HuBERT: masked prediction of clustered speech units."""
