"""What a job is: how its batches are put together, its loss, its metrics, its answers."""
