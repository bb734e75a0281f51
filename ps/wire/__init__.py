"""The wire: messages generated from proto/ by `make proto`, how they are read, and arrays in them."""
