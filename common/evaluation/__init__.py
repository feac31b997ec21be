"""Systems, their predictions and scores."""
