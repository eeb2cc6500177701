"""Pre-training: data, loop, optimiser, schedule, checkpoints and metrics, on Lightning Fabric."""
