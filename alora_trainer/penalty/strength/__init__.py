"""Lambda over a training: a schedule, found from gradients, or steered to keep a budget."""
