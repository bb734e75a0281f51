"""The wire: messages generated from proto/ by `make proto`, arrays in them, and their limit."""

MAX_MESSAGE_BYTES = 1 << 30  # both ends; 16 million rows of 16 fp32 in one message to one shard
