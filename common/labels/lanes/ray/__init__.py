"""The lane over a Ray cluster's actors, on one machine or many."""
