"""Any wav2vec 2.0 or w2v-BERT of fairseq2, as `fairseq2:CARD_OR_FOLDER`."""
