"""DistilHuBERT: two blocks that predict the hidden states of HuBERT's twelve."""
