"""How importance is recorded: the path integral of a training, or the Fisher information over text."""
