"""Where the loop's batches are from: rows of a data set, or responses sampled to prompts."""
