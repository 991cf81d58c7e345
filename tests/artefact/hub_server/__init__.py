"""A small server of our own that speaks enough of the Hub's protocol for the real client: see `server`."""
