"""Where a new adapter starts: the directions in which the domain is learned and general text moves least."""
