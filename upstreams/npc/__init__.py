"""NPC: convolutions that predict each frame from its surroundings."""
