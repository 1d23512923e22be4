"""What guides a network in a run: vectors of texts, masks of organs."""
