"""The limits of a job, and their distribution among its workers."""
