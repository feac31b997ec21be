"""The lane of batches: the lane, and its chunks on storage."""
