"""w2v-BERT: a conformer on log-mel frames, trained with contrastive and masked prediction."""
