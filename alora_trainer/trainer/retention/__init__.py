"""What a training promises of general ability: measured, and kept by scaling what was trained, or said not to be kept."""
