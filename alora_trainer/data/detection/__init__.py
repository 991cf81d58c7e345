"""What a person's files hold: which of the usual forms their records have, and what of them can be learned."""
