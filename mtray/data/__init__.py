"""A task's data: specs, schema, rows, batches, messages, statistics, shared memory."""
