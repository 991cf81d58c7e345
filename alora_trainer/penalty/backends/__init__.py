"""The ways to compute one weight's penalty and its gradients, and the choice among them."""
