"""The limits of a whole job, and each worker's part of them."""
