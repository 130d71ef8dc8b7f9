"""Where weights come from: official checkpoints, files, and the names other implementations use."""
