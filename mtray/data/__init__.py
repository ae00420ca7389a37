"""What data looks like: specs, schema, rows, batches, messages, statistics, shared memory."""
